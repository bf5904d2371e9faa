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

from zo_fl.engine.precision import widen
from zo_fl.engine.types import Array
from zo_fl.models.kernel_network import KernelNetwork
from zo_fl.models.layers import Head, torch_uniform
from zo_fl.models.windows import mean_over_last, windows

FILTERS = "filters"
NETWORK = "network"
THRESHOLD = 0.25
_SMOOTH = 0.01  # added below the root, so that its gradient stays finite
_AT_ONCE = 128  # kernels
_CONTRAST = 0.1  # added to the variance of the pixels of a patch, which is around 1


class Patches(nn.Module):
    """A convolution with large kernels, a two-sided threshold, pooling, and a head.

    Attributes are as in ``models.create``; ``size`` is the height and width of a patch. With the
    norm ``patch`` each patch has mean 0 and, almost, variance 1. ``network`` adds the features of a
    kernel network with as many kernels.
    """

    num_classes: int
    norm: str = "none"
    kernels: int = 256
    size: int = 6
    mirror: bool = True
    network: int = 0

    @nn.compact
    def __call__(self, x: Array, *, train: bool, mask: Array | None = None) -> Array:
        """Returns logits ``f32[n, num_classes]`` of images ``x: f32[n, H, W, c]``."""
        del train, mask
        contrast = self.norm == "patch"
        features = _Filters(self.kernels, self.size, contrast, self.mirror, name=FILTERS)(x)
        if self.network:
            network = KernelNetwork(self.network, self.mirror, name=NETWORK)
            features = jnp.concatenate([features, network(x)], axis=-1)
        return Head(self.num_classes, name="head")(features)


class _Filters(nn.Module):
    """Inner products of patches with kernels, pooled: ``f32[n, H, W, c] -> f32[n, 8 kernels]``.

    ``bias`` subtracts the share of the mean patch. A few kernels are applied at a time, to need
    less memory and stay in the cache. Means over rows, then over columns, take 0.6 of the time of a
    product with the quadrants' shares on XLA:CPU.
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
        views = [(kernel, _halves(seen.shape[2]))]
        if self.mirror:  # mirroring kernels and places is mirroring the image
            views.append((kernel[:, ::-1], _halves(seen.shape[2], mirrored=True)))
        pooled = sum(self._pooled(seen, *view, bias) for view in views) / len(views)
        return jnp.sqrt(pooled + _SMOOTH)

    def _pooled(self, seen: Array, kernel: Array, sides: tuple[slice, slice], bias: Array) -> Array:
        """Returns the pooled features ``f32[n, 8 kernels]`` of patches ``f32[n, H', W', d]``.

        ``sides`` are the columns of the left half and of the right one.
        """
        n, height, width, dim = seen.shape
        seen, found = seen.reshape(n * height * width, dim), []
        for start in range(0, self.kernels, _AT_ONCE):
            some = kernel[..., start : start + _AT_ONCE].reshape(dim, -1)
            y = seen @ some + bias[None, start : start + _AT_ONCE]
            y = y.reshape(n, height, width, -1)
            for sign in (1, -1):
                passed = nn.relu(sign * y - THRESHOLD)
                rows = [widen(passed[:, half].mean(1)) for half in _halves(height)]
                means = jnp.stack([half[:, side].mean(1) for half in rows for side in sides], 1)
                found.append(means.reshape(n, -1))
        return jnp.concatenate(found, axis=-1)


def image_patches(x: Array, size: int, contrast: bool) -> Array:
    """Returns all patches of images ``f32[n, H, W, c]``, as ``f32[n, H', W', size * size * c]``.

    ``size`` is the height and width of a patch. With ``contrast`` each patch is given mean 0 and
    variance v / (v + 0.1).
    """
    seen = windows(x, size)
    if not contrast:
        return seen
    seen = seen - mean_over_last(seen)
    return seen * jax.lax.rsqrt(mean_over_last(jnp.square(seen)) + _CONTRAST)


def _halves(side: int, mirrored: bool = False) -> tuple[slice, slice]:
    """Returns the first half of a side, with the middle, and the second one."""
    first = -(-side // 2)
    return (
        (slice(side - first, None), slice(side - first))
        if mirrored
        else (slice(first), slice(first, None))
    )
