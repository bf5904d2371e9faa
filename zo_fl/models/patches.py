"""One layer of image patches: features that are set in closed form instead of being trained.

    y = conv(x),   features = means over four quadrants of relu(y - 1/2) and relu(-y - 1/2)

with kernels that are whitened patches of images (``algorithms/patches.py`` sets them) and a linear
head. Being ordinary parameters, they can be trained further by any method.

Sources: Coates and Ng 2011; Thiry et al. (arXiv 2101.07528).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from zo_fl.core.types import Array
from zo_fl.models.layers import Conv, Head, widen

FILTERS = "filters"
THRESHOLD = 0.5
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
        y = _Filters(self.kernels, self.size, self.norm == "patch", self.conv, name=FILTERS)(x)
        both = jnp.concatenate([nn.relu(y - THRESHOLD), nn.relu(-y - THRESHOLD)], axis=-1)
        return Head(self.num_classes, name="head")(_quadrants(both))


class _Filters(nn.Module):
    """Inner products of patches with kernels; ``bias`` is what the patches' mean would give."""

    kernels: int
    size: int
    contrast: bool
    conv: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns ``f32[n, H', W', kernels]``."""
        convolve = Conv(self.kernels, self.size, 1, "VALID", False, self.conv, name="conv")
        bias = self.param("bias", nn.initializers.zeros, (self.kernels,))
        y = convolve(x)
        if self.contrast:
            kernel = convolve.variables["params"]["kernel"].astype(x.dtype)
            mean, scale = patch_statistics(x, self.size)
            y = (y - mean * kernel.sum((0, 1, 2))[None, None, None]) * scale
        return y + bias.astype(x.dtype)[None, None, None]


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
    """Returns the means over four quadrants, ``f32[n, H, W, c] -> f32[n, 4 c]``."""
    height, width = (-(-side // 2) for side in x.shape[1:3])
    parts = [
        widen(part).mean((1, 2))
        for rows in (x[:, :height], x[:, height:])
        for part in (rows[:, :, :width], rows[:, :, width:])
    ]
    return jnp.concatenate(parts, axis=-1)
