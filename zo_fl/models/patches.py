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
from zo_fl.models.kernel_network import KernelNetwork
from zo_fl.models.layers import Head, torch_uniform
from zo_fl.models.windows import mean_over_last, pool, some_at_a_time, windows

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

    ``bias`` subtracts the share of the mean patch.
    """

    kernels: int
    size: int
    contrast: bool
    mirror: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.size, self.size, x.shape[-1], self.kernels)
        kernel = self.param("kernel", torch_uniform, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.kernels,))
        seen = image_patches(widen(x), self.size, self.contrast).astype(x.dtype)
        down, across = (_halves(side) for side in seen.shape[1:3])
        pooled = _pooled(seen, kernel, bias, down, across)
        if self.mirror:  # mirroring kernels and places is mirroring the image
            mirrored = _pooled(seen, kernel[:, ::-1], bias, down, across[:, ::-1])
            pooled = (pooled + mirrored) / 2
        return jnp.sqrt(pooled + _SMOOTH)


def _pooled(seen: Array, kernel: Array, bias: Array, down: np.ndarray, across: np.ndarray) -> Array:
    """Returns the pooled features ``f32[n, 8 kernels]`` of patches ``[n, H', W', d]``.

    Args:
      seen: the patches.
      kernel: ``f32[size, size, c, kernels]``.
      bias: ``f32[kernels]``.
      down: ``f32[2, H']``, the shares of the rows in an upper place and in a lower one.
      across: ``f32[2, W']``, the same for columns.
    """
    n, *places, dim = seen.shape
    flat = seen.reshape(-1, dim)

    def of_some(kernel: Array, bias: Array) -> Array:
        # Units that multiply bfloat16 (AMX, GPUs, TPUs) add in float32 at the same speed.
        y = jnp.matmul(flat, kernel.astype(flat.dtype), preferred_element_type=kernel.dtype)
        y = (y + bias[None]).reshape(n, *places, -1)
        found = []
        for sign in (1, -1):
            passed = nn.relu(sign * y - THRESHOLD)
            found.append(pool(pool(passed, 1, down), 2, across).reshape(n, -1))
        return jnp.concatenate(found, axis=-1)

    return some_at_a_time(of_some, (kernel.reshape(dim, -1), bias), _AT_ONCE)


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


def _halves(side: int) -> np.ndarray:
    """Returns weights ``f32[2, side]`` of means over the first half, with the middle, and over the
    second."""
    first = side - side // 2
    weights = np.zeros((2, side), np.float32)
    weights[0, :first], weights[1, first:] = 1 / first, 1 / (side - first)
    return weights
