"""2-D convolutions with fast gradients on CPUs.

There are two implementations of one function, equal up to rounding:

``xla``        ``lax.conv_general_dilated`` with XLA's own gradients. The default on GPUs and TPUs,
               where nothing was measured yet.
``fast_grad``  The same forward pass, but several columns at once for images of three channels. Both
               gradients are forward convolutions; the one by the kernel takes a few examples at a
               time. XLA:CPU compiles the gradient convolutions of autodiff to naive loops inside
               ``scan``, 5 to 15 times slower than outside (jax issue #12868). Forward-mode
               differentiation works only within ``precision.forward_mode``.

Under ``vmap`` over kernels both become grouped convolutions (jax issue #26568), which are slow on
CPUs. Measurements: ``docs/results/notes_on_performance``.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from zo_fl.engine.precision import in_forward_mode
from zo_fl.engine.types import Array

IMPLEMENTATIONS = ("auto", "xla", "fast_grad")
_LAYOUT = ("NHWC", "HWIO", "NHWC")
_CHUNK_BYTES = 2 * 2**20  # of images and cotangents, so that they stay in the cache
_FEATURES_AT_ONCE = 32  # of all neighbouring output columns that are computed together

Pads = tuple[tuple[int, int], tuple[int, int]]


def conv2d(
    x: Array,
    kernel: Array,
    stride: int = 1,
    padding: str | int = "SAME",
    implementation: str = "auto",
) -> Array:
    """Returns the cross-correlation of images with a kernel.

    Args:
      x: ``f32[n, H, W, c]``.
      kernel: ``f32[kh, kw, c, o]``.
      stride: step along height and width, at least 1.
      padding: ``"SAME"``, ``"VALID"``, or zeros added on each of the four sides (PyTorch's
        convention, which differs from ``"SAME"`` where the stride is 2).
      implementation: one of ``IMPLEMENTATIONS``; ``auto`` means ``fast_grad`` on a CPU and ``xla``
        elsewhere, which is decided when the function is traced.

    Returns:
      ``f32[n, H', W', o]``.
    """
    if implementation == "auto":
        implementation = "fast_grad" if jax.default_backend() == "cpu" else "xla"
    pads = _explicit_pads(x.shape, kernel.shape, stride, padding)
    if implementation == "xla":
        return _forward(x, kernel, (stride, stride), pads)
    if implementation != "fast_grad":
        raise ValueError(f"unknown convolution {implementation!r}, allowed: {IMPLEMENTATIONS}")
    if kernel.shape[:2] == (1, 1) and pads == ((0, 0), (0, 0)):
        return x[:, ::stride, ::stride] @ kernel[0, 0]
    if in_forward_mode():
        return _quick_forward(x, kernel, stride, pads)
    # The gradients are traced later, when another precision may be set.
    precision: Any = getattr(jax.config, "jax_default_matmul_precision")  # noqa: B009
    return _fast_grad(x, kernel, stride, pads, precision)


def _explicit_pads(
    x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], stride: int, padding: str | int
) -> Pads:
    """Returns the numbers of zeros to add before and after, for height and width."""
    if isinstance(padding, int):
        return ((padding, padding), (padding, padding))
    rows, columns = lax.padtype_to_pads(x_shape[1:3], kernel_shape[:2], (stride, stride), padding)
    return rows, columns


def _forward(
    x: Array, kernel: Array, strides: tuple[int, int], pads: Pads, dilation: int = 1
) -> Array:
    """Returns XLA's convolution ``f32[n, H', W', o]``, after it puts ``dilation - 1`` zeros between
    the entries of ``x``."""
    both = (dilation, dilation)
    return lax.conv_general_dilated(
        x, kernel, strides, pads, lhs_dilation=both, dimension_numbers=_LAYOUT
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _fast_grad(x: Array, kernel: Array, stride: int, pads: Pads, precision: str | None) -> Array:
    """Returns ``_forward``; its gradients are written out below."""
    del precision  # the current one
    return _quick_forward(x, kernel, stride, pads)


def _fast_grad_fwd(x, kernel, stride, pads, precision):
    return _fast_grad(x, kernel, stride, pads, precision), (x, kernel)


def _fast_grad_bwd(stride, pads, precision, residuals, cotangent):
    x, kernel = residuals
    with jax.default_matmul_precision(precision):
        return (
            _input_gradient(kernel, cotangent, x.shape, stride, pads),
            _kernel_gradient(x, cotangent, kernel.shape, stride, pads),
        )


_fast_grad.defvjp(_fast_grad_fwd, _fast_grad_bwd)


def _quick_forward(x: Array, kernel: Array, stride: int, pads: Pads) -> Array:
    """Returns ``_forward``, but computes images of three channels in another way.

    XLA:CPU is slow if a window has few contiguous numbers and few features come of it. So this adds
    a fourth channel of zeros, and computes two, four or eight neighbouring output columns at once
    if they have 32 features at most: as features of a wider kernel that moves by that many columns.
    There are more products (by zeros), but they take less time.
    """
    if x.shape[-1] != 3:
        return _forward(x, kernel, (stride, stride), pads)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, 1)))
    kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, 1), (0, 0)))
    height, width, channels, features = kernel.shape
    columns = x.shape[2] + sum(pads[1]) - width + 1
    fits = (n for n in (8, 4, 2) if n * features <= _FEATURES_AT_ONCE and columns % n == 0)
    at_once = next(fits, 1)
    if stride > 1 or at_once == 1:
        return _forward(x, kernel, (stride, stride), pads)
    shifted = [
        jnp.pad(kernel, ((0, 0), (i, at_once - 1 - i), (0, 0), (0, 0))) for i in range(at_once)
    ]
    wide = jnp.stack(shifted, axis=3)
    wide = wide.reshape(height, width + at_once - 1, channels, at_once * features)
    y = _forward(x, wide, (1, at_once), pads)
    return y.reshape(*y.shape[:2], columns, features)


def _kernel_gradient(
    x: Array, cotangent: Array, kernel_shape: tuple[int, ...], stride: int, pads: Pads
) -> Array:
    """Returns the gradient ``f32[kh, kw, c, o]``, a sum of convolutions of chunks of examples.

    Channels and examples of ``x`` change places, and the cotangent is the kernel. A chunk is small
    enough to stay in the cache.
    """
    height, width, _, features = kernel_shape
    sum_type = jnp.promote_types(x.dtype, jnp.float32)

    def gradient(images, cotangents):  # f32[c, kh, kw, o]
        whole = lax.conv_general_dilated(
            images.transpose(3, 1, 2, 0),
            cotangents.transpose(1, 2, 0, 3),
            (1, 1),
            pads,
            rhs_dilation=(stride, stride),
            dimension_numbers=_LAYOUT,
            preferred_element_type=sum_type,
        )
        return whole[:, :height, :width]  # with a stride, no window may reach the last rows

    n = x.shape[0]
    chunk = _chunk_size(n, (math.prod(x.shape[1:]) + math.prod(cotangent.shape[1:])) * x.itemsize)
    if chunk == n:
        total = gradient(x, cotangent)
    else:
        chunks = [a.reshape(n // chunk, chunk, *a.shape[1:]) for a in (x, cotangent)]
        zeros = jnp.zeros((x.shape[3], height, width, features), sum_type)
        total = lax.scan(lambda total, c: (total + gradient(*c), None), zeros, chunks)[0]
    return total.transpose(1, 2, 0, 3).astype(x.dtype)


def _chunk_size(n: int, bytes_each: int) -> int:
    """Returns the largest divisor of ``n`` whose examples fit into ``_CHUNK_BYTES``, or 1."""
    limit = max(1, min(n, _CHUNK_BYTES // bytes_each))
    return next(size for size in range(limit, 0, -1) if n % size == 0)


def _input_gradient(
    kernel: Array, cotangent: Array, x_shape: tuple[int, ...], stride: int, pads: Pads
) -> Array:
    """Returns the gradient ``f32[n, H, W, c]`` as a forward convolution of the cotangent."""
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    back_pads = []
    for axis, (low, _) in enumerate(pads):
        size = kernel.shape[axis]
        dilated = (cotangent.shape[axis + 1] - 1) * stride + 1
        before = size - 1 - low
        back_pads.append((before, x_shape[axis + 1] - dilated - before + size - 1))
    return _forward(cotangent, flipped, (1, 1), tuple(back_pads), dilation=stride)
