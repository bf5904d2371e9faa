"""One layer of image patches, whose features are set in closed form instead of being trained.

    y = conv(x),   m = means over four quadrants of relu(y - 1/4) and relu(-y - 1/4)
    features = sqrt(m + 0.01),   m the mean over an image and its mirror image

The kernels are whitened patches of images, which ``heads/patches.py`` sets, and a linear head
follows. Kernels are ordinary parameters, so any method can train them further. Most features are
small and a few are large; the root makes them fit for a linear head (0.8 points of validation
accuracy with ridge regression on 2,048 features). The mirror image gives three points and doubles
the cost; it is left out where left and right matter.

Sources: Coates and Ng 2011; Thiry et al. (arXiv 2101.07528); the root is that of "signed square
rooting" of pooled features (Perronnin et al. 2010).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zo_fl.engine.precision import widen
from zo_fl.engine.types import Array
from zo_fl.models.layers import Head, torch_uniform

FILTERS = "filters"
THRESHOLD = 0.25
_SMOOTH = 0.01  # added below the root, so that its gradient stays finite
_AT_ONCE = 256  # kernels
_CONTRAST = 0.1  # added to the variance of the pixels of a patch, which is around 1


class Patches(nn.Module):
    """A convolution with large kernels, a two-sided threshold, pooling, and a head.

    Attributes are as in ``models.create``; ``size`` is the height and width of a patch. With the
    norm ``patch`` each patch has mean 0 and, almost, variance 1.
    """

    num_classes: int
    norm: str = "none"
    kernels: int = 256
    size: int = 6
    mirror: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool, mask: Array | None = None) -> Array:
        """Returns logits ``f32[n, num_classes]`` of images ``x: f32[n, H, W, c]``."""
        del train, mask
        contrast = self.norm == "patch"
        filters = _Filters(self.kernels, self.size, contrast, self.mirror, name=FILTERS)
        return Head(self.num_classes, name="head")(filters(x))


class _Filters(nn.Module):
    """Inner products of patches with kernels, pooled: ``f32[n, H, W, c] -> f32[n, 8 kernels]``.

    ``bias`` subtracts the share of the mean patch. A few kernels are applied at a time, to need
    less memory and stay in the cache. A convolution, and one pooling for both thresholds, would
    take 1.5 times as long on XLA:CPU.
    """

    kernels: int
    size: int
    contrast: bool
    mirror: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.size, self.size, x.shape[-1], self.kernels)
        kernel = self.param("kernel", torch_uniform, shape).astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.kernels,)).astype(x.dtype)
        seen = image_patches(x, self.size, self.contrast)
        shares = _quadrants(*seen.shape[1:3])
        views = [(kernel, shares)]
        if self.mirror:  # mirroring kernels and places is mirroring the image
            views.append((kernel[:, ::-1], shares[:, :, ::-1]))
        pooled = sum(self._pooled(seen, *view, bias) for view in views) / len(views)
        return jnp.sqrt(pooled + _SMOOTH)

    def _pooled(self, seen: Array, kernel: Array, shares: np.ndarray, bias: Array) -> Array:
        """Returns the pooled features ``f32[n, 8 kernels]`` of patches ``f32[n, H', W', d]``."""
        n, height, width, dim = seen.shape
        seen = seen.reshape(n * height * width, dim)
        quadrants = jnp.asarray(shares.reshape(4, -1), seen.dtype)
        found = []
        for start in range(0, self.kernels, _AT_ONCE):
            some = kernel[..., start : start + _AT_ONCE].reshape(dim, -1)
            y = seen @ some + bias[None, start : start + _AT_ONCE]
            y = y.reshape(n, height * width, -1)
            for sign in (1, -1):
                means = jnp.einsum("qp,npk->nqk", quadrants, nn.relu(sign * y - THRESHOLD))
                found.append(widen(means).reshape(n, -1))
        return jnp.concatenate(found, axis=-1)


def image_patches(x: Array, size: int, contrast: bool) -> Array:
    """Returns all patches of images ``f32[n, H, W, c]``, as ``f32[n, H', W', size * size * c]``.

    ``size`` is the height and width of a patch. With ``contrast`` each patch is given mean 0 and
    variance v / (v + 0.1).
    """
    height, width = (side - size + 1 for side in x.shape[1:3])
    # Columns, then rows: twelve slices compile six times faster than 36.
    columns = [x[:, :, start : start + width] for start in range(size)]
    strips = jnp.concatenate(columns, axis=-1)
    rows = [strips[:, start : start + height] for start in range(size)]
    seen = jnp.concatenate(rows, axis=-1)
    if not contrast:
        return seen
    seen = seen - _mean(seen)
    return seen * jax.lax.rsqrt(_mean(jnp.square(seen)) + _CONTRAST)


def _mean(seen: Array) -> Array:
    """Returns means over the last axis by a product; with a sum XLA:CPU would copy the terms."""
    shares = jnp.full((seen.shape[-1], 1), 1 / seen.shape[-1], seen.dtype)
    return jnp.matmul(seen, shares, precision=jax.lax.Precision.HIGHEST)


def _quadrants(height: int, width: int) -> np.ndarray:
    """Returns weights ``f32[4, height, width]`` that take the mean of each quadrant."""
    bottom, right = (np.arange(side) >= -(-side // 2) for side in (height, width))
    quadrant = 2 * bottom[:, None] + right[None]
    indicators = (quadrant == np.arange(4)[:, None, None]).astype(np.float32)
    return indicators / np.maximum(indicators.sum((1, 2), keepdims=True), 1)
