"""One layer of image patches: features that are set in closed form instead of being trained.

    y = conv(x),   features = means over four quadrants of relu(y - 1/2) and relu(-y - 1/2)

with kernels that are whitened patches of images (``algorithms/patches.py`` sets them) and a linear
head. Being ordinary parameters, they can be trained further by any method.

Sources: Coates and Ng 2011; Thiry et al. (arXiv 2101.07528).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zo_fl.core.precision import widen
from zo_fl.core.types import Array
from zo_fl.models.conv import conv2d
from zo_fl.models.layers import Head, torch_uniform

FILTERS = "filters"
THRESHOLD = 0.5
_AT_ONCE = 256
_CONTRAST = 0.1  # added to the variance of a patch's pixels, which are around 1


class Patches(nn.Module):
    """A convolution with large kernels, a two-sided threshold, pooling, and a head.

    Attributes:
      num_classes: width of the output.
      norm: ``none``, or ``patch``: each patch has mean 0 and, almost, variance 1.
      conv: one of ``conv.IMPLEMENTATIONS``.
      kernels: each gives 8 features.
      size: height and width of a patch.
    """

    num_classes: int
    norm: str = "none"
    conv: str = "auto"
    kernels: int = 256
    size: int = 6

    @nn.compact
    def __call__(self, x: Array, *, train: bool, mask: Array | None = None) -> Array:
        """Returns logits ``f32[n, num_classes]`` of images ``x: f32[n, H, W, c]``."""
        del train, mask
        filters = _Filters(self.kernels, self.size, self.norm == "patch", self.conv, name=FILTERS)
        return Head(self.num_classes, name="head")(filters(x))


class _Filters(nn.Module):
    """Inner products of patches with kernels, thresholded and pooled.

    ``bias`` takes off what the patches' mean would give. Kernels are applied some at a time, so
    that their activations stay in the cache.
    """

    kernels: int
    size: int
    contrast: bool
    conv: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns ``f32[n, 8 kernels]`` of images ``f32[n, H, W, c]``."""
        shape = (self.size, self.size, x.shape[-1], self.kernels)
        kernel = self.param("kernel", torch_uniform, shape).astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.kernels,)).astype(x.dtype)
        statistics = patch_statistics(x, self.size) if self.contrast else None
        found = []
        for start in range(0, self.kernels, _AT_ONCE):
            some = kernel[..., start : start + _AT_ONCE]
            y = conv2d(x, some, 1, "VALID", self.conv)
            if statistics is not None:
                mean, scale = statistics
                y = (y - mean * some.sum((0, 1, 2))[None, None, None]) * scale
            y = y + bias[None, None, None, start : start + _AT_ONCE]
            both = jnp.concatenate([nn.relu(y - THRESHOLD), nn.relu(-y - THRESHOLD)], axis=-1)
            found.append(_quadrants(both))
        return jnp.concatenate(found, axis=-1)


def patch_statistics(x: Array, size: int) -> tuple[Array, Array]:
    """Returns the mean of each patch's pixels and ``1 / sqrt(variance + 0.1)``.

    Both ``f32[n, H', W', 1]``, of images ``f32[n, H, W, c]``.
    """
    count = size * size * x.shape[-1]

    def over_patches(values):
        window = (1, size, size, 1)
        planes = values.sum(-1, keepdims=True)
        zero = jnp.zeros((), values.dtype)
        return jax.lax.reduce_window(planes, zero, jax.lax.add, window, (1, 1, 1, 1), "VALID")

    mean = over_patches(x) / count
    variance = jnp.maximum(over_patches(x * x) / count - mean * mean, 0)
    return mean, jax.lax.rsqrt(variance + _CONTRAST)


def _quadrants(x: Array) -> Array:
    """Returns the means over four quadrants, ``f32[n, H, W, c] -> f32[n, 4 c]``.

    A product with their indicators: XLA:CPU takes twice as long for means over slices.
    """
    n, height, width, channels = x.shape
    bottom, right = (np.arange(side) >= -(-side // 2) for side in (height, width))
    quadrant = (2 * bottom[:, None] + right[None]).reshape(-1)
    indicators = (quadrant == np.arange(4)[:, None]).astype(np.float32)
    shares = jnp.asarray(indicators / np.maximum(indicators.sum(1, keepdims=True), 1), x.dtype)
    means = jnp.einsum("qp,npc->nqc", shares, x.reshape(n, height * width, channels))
    return widen(means).reshape(n, 4 * channels)
