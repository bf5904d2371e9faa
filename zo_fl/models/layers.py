"""Layers that the models share: convolution, dense layer, norms, pooling.

All parameters and statistics are ``float32``; the only collections are ``params`` and
``batch_stats``. Activations keep the dtype of the images (see ``engine.precision``), which the
docstrings call ``f32``.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from zo_fl.engine.precision import widen
from zo_fl.engine.statistics import BATCH_NORM_MOMENTUM
from zo_fl.engine.types import Array
from zo_fl.models.conv import conv2d

NORMS = ("batch", "group", "layer", "patch", "none")
NUM_GROUPS = 2  # the paper's author's choice for GroupNorm
NORM_EPSILON = 1e-5

# PyTorch's default, U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as in the paper's code. It matters:
# He-normal weights are sqrt(6) times larger, and before a norm the effective step size is
# proportional to 1 / |w|^2, so the published learning rates would be six times too small.
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Conv(nn.Module):
    """A 2-D convolution.

    Attributes:
      features: output channels.
      kernel_size: height and width of the window.
      stride: step along both axes.
      padding: ``"SAME"``, ``"VALID"``, or zeros on each side (PyTorch's convention).
      use_bias: False before a norm: there the gradient of a bias is nothing but rounding noise,
        which Adam would turn into differences.
      implementation: one of ``conv.IMPLEMENTATIONS``.
      pool: whether to take maxima of 2x2 windows before the bias is added; the result is the same
        as after it, for a quarter of the work.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: str | int = "SAME"
    use_bias: bool = False
    implementation: str = "auto"
    pool: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns ``f32[n, H', W', features]`` from ``x: f32[n, H, W, c]``."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", torch_uniform, shape)
        y = conv2d(x, kernel.astype(x.dtype), self.stride, self.padding, self.implementation)
        if self.pool:
            y = max_pool(y)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = _add_bias(y, bias.astype(x.dtype))
        return y


@jax.custom_jvp
def _add_bias(x: Array, bias: Array) -> Array:
    """Returns ``x: f32[n, H, W, c]`` plus ``bias: f32[c]``.

    The gradient by the bias, the transpose of the derivative below, is a product with ones. A long
    sum is slower on XLA:CPU: 2.6 against 0.3 ms for 50 images of 30x30x32.
    """
    return x + _per_channel(bias)


@_add_bias.defjvp
def _add_bias_jvp(primals, tangents):
    x, bias = primals
    moved, moved_bias = tangents
    ones = jnp.ones(math.prod(x.shape[:-1]), widen(x).dtype)
    rows = jnp.tensordot(ones, widen(moved_bias), axes=0, precision="highest")
    return _add_bias(x, bias), moved + rows.reshape(x.shape).astype(x.dtype)


class Dense(nn.Module):
    """A dense layer that computes in the dtype of its input, unlike ``flax.linen.Dense``.

    ``bias`` starts at 0 (PyTorch draws it from the weights' interval; HeteroFL and the ViT do not).
    """

    features: int
    kernel_init: nn.initializers.Initializer = torch_uniform

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns ``f32[..., features]`` from ``x: f32[..., i]``."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        bias = bias.reshape((1,) * (x.ndim - 1) + (self.features,))
        return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)


class Head(Dense):
    """The last layer, a dense layer in float32, like the losses."""

    def __call__(self, x: Array) -> Array:
        """Returns logits ``f32[n, features]`` from ``x: f32[n, i]``."""
        return super().__call__(widen(x))


def _per_channel(values: Array) -> Array:
    """Returns ``f32[c]`` as ``f32[1, 1, 1, c]``; JAX is set to promote no ranks by itself."""
    return values[None, None, None]


class BatchNorm(nn.Module):
    """Normalization by the statistics of a batch, or by running statistics.

    It differs from ``flax.linen.BatchNorm`` in two ways. A batch without a real example (of a
    padding client) is normalized by the running statistics and does not change them; its own mean
    would be NaN. And ``train=True`` updates the running statistics only if ``batch_stats`` is
    mutable, so a zeroth-order probe can use batch statistics without updating any. The running
    variance is the biased one, as in flax (PyTorch's is unbiased).
    """

    @nn.compact
    def __call__(self, x: Array, *, train: bool, mask: Array | None = None) -> Array:
        """Returns ``x: f32[n, H, W, c]``, normalized over all axes but the last."""
        channels = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)
        mean, var = running_mean.value, running_var.value
        if train and not self.is_initializing():
            mean, var = _batch_statistics(x, mask, mean, var)
            if self.is_mutable_collection("batch_stats"):
                keep = BATCH_NORM_MOMENTUM
                running_mean.value = keep * running_mean.value + (1 - keep) * mean
                running_var.value = keep * running_var.value + (1 - keep) * var
        multiplier = scale * jax.lax.rsqrt(var + NORM_EPSILON)
        y = (widen(x) - _per_channel(mean)) * _per_channel(multiplier) + _per_channel(bias)
        return y.astype(x.dtype)


def _batch_statistics(
    x: Array, mask: Array | None, running_mean: Array, running_var: Array
) -> tuple[Array, Array]:
    """Returns mean and biased variance ``f32[c]`` of the real examples of ``x: f32[n, H, W, c]``.

    Takes two passes: ``E[x^2] - E[x]^2`` cancels digits, which zeroth-order differences would show.
    """
    x = widen(x)
    examples = jnp.ones(x.shape[0], x.dtype) if mask is None else mask.astype(x.dtype)
    count = examples.sum()
    weights = examples / (jnp.maximum(count, 1) * x.shape[1] * x.shape[2])
    mean = _weighted_sum(weights, x)
    var = _weighted_sum(weights, jnp.square(x - _per_channel(mean)))
    if mask is None:
        return mean, var
    return jnp.where(count > 0, mean, running_mean), jnp.where(count > 0, var, running_var)


def _weighted_sum(weights: Array, x: Array) -> Array:
    """Returns the sum over all pixels ``f32[c]`` of ``x: f32[n, H, W, c]`` by ``weights: f32[n]``.

    On a CPU each example is summed by a product: a sum would copy its terms, a fifth more memory
    for a forward pass of ResNet18. One product over all examples would be a hundred times less
    exact.
    """
    if jax.default_backend() != "cpu":
        return (x * weights[:, None, None, None]).sum((0, 1, 2))
    pixels = x.reshape(x.shape[0], -1, x.shape[-1])
    each = jnp.matmul(jnp.ones(pixels.shape[1], x.dtype), pixels, precision="highest")
    return (each * weights[:, None]).sum(0)


class GroupNorm(nn.Module):
    """Normalization of each example over space and a group of channels.

    Equals ``flax.linen.GroupNorm``, but sums over space first, which saves a five-dimensional copy
    of the activations. ``num_groups`` must divide the number of channels.
    """

    num_groups: int = NUM_GROUPS

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns ``f32[n, H, W, c]`` from ``x: f32[n, H, W, c]``."""
        dtype, x = x.dtype, widen(x)
        channels = x.shape[-1]
        if channels % self.num_groups:
            raise ValueError(
                f"{channels} channels do not split into {self.num_groups} groups; change the"
                " model's width"
            )
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        mean = self._group_mean(x.mean((1, 2)))
        centered = x - mean[:, None, None]
        var = self._group_mean(jnp.square(centered).mean((1, 2)))
        multiplier = scale[None] * jax.lax.rsqrt(var + NORM_EPSILON)
        return (centered * multiplier[:, None, None] + _per_channel(bias)).astype(dtype)

    def _group_mean(self, values: Array) -> Array:
        """Returns the mean over the group of each channel, ``f32[n, c] -> f32[n, c]``."""
        n, channels = values.shape
        means = values.reshape(n, self.num_groups, -1).mean(-1)
        return jnp.repeat(means, channels // self.num_groups, axis=1)


def normalize(
    kind: str, name: str, x: Array, *, train: bool, mask: Array | None = None, share: float = 1.0
) -> Array:
    """Returns ``x: f32[n, H, W, c]`` after a norm ``kind``, or rescaled if that is ``none``.

    Call it inside a compact method: the norm becomes the submodule ``name`` of the caller. In
    training HeteroFL divides the activations of a sub-model by its ``share``. A norm cancels such a
    factor, so only a model without one is rescaled.
    """
    if kind == "batch":
        return BatchNorm(name=name)(x, train=train, mask=mask)
    if kind == "group":
        return GroupNorm(name=name)(x)
    return rescale(x, train=train, share=share)


def rescale(x: Array, *, train: bool, share: float) -> Array:
    """Returns ``x / share`` in training, otherwise ``x``: the "scaler" of HeteroFL."""
    return x / share if train and share != 1.0 else x


@jax.custom_jvp
def max_pool(x: Array) -> Array:
    """Returns the maxima of 2x2 windows, ``f32[n, H, W, c] -> f32[n, H // 2, W // 2, c]``.

    Entries that tie for a maximum share its gradient. The derivative is written out below, because
    the gradient of ``reduce_window`` is a slow ``select-and-scatter`` on a CPU.

    Raises:
      ValueError: nothing would be left of an image.
    """
    if min(x.shape[1:3]) < 2:
        raise ValueError(f"{x.shape[1]} x {x.shape[2]} pixels are too few for a pool of 2 x 2")
    lowest = jnp.array(-jnp.inf, x.dtype)
    return jax.lax.reduce_window(x, lowest, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


@max_pool.defjvp
def _max_pool_jvp(primals, tangents):
    (x,), (moved,) = primals, tangents
    maxima = max_pool(x)
    n, rows, columns, channels = maxima.shape

    def windows(array):
        cut = array[:, : 2 * rows, : 2 * columns]
        return cut.reshape(n, rows, 2, columns, 2, channels)

    is_largest = windows(x) == maxima[:, :, None, :, None]
    # One term for each place: XLA's CPU back end is slow at sums of two rows and two columns.
    places = [is_largest[:, :, i, :, j] for i in range(2) for j in range(2)]
    # Without the 1 there could be none: XLA may compute x again for this sum, and round it in
    # another way than for the maxima (the CPU back end at optimization level 0 does).
    count = jnp.maximum(sum(place.astype(x.dtype) for place in places), 1)
    return maxima, jnp.where(is_largest, windows(moved), 0).sum((2, 4)) / count


def mean_pool(x: Array) -> Array:
    """Returns the mean over height and width, ``f32[n, H, W, c] -> f32[n, c]``."""
    return widen(x).mean((1, 2))
