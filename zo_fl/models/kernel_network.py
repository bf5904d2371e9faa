"""A convolutional kernel network of two layers, whose features the model ``patches`` can add.

    x:      images, whitened by a convolution with 9x9 windows; then each of mean 0 and variance 1
    layer:  r_k = |p| kappa(cos(p, z_k)),  kappa(u) = exp((u - 1) / 0.36)
            p a 3x3 window of all channels, z_k a kernel of norm 1; then Gaussian means of stride s,
            and times kappa(Z^T Z)^-1/2 of all kernels Z: products of two windows' outputs are what
            kappa says of the windows, up to what the kernels cannot tell apart
    1:      128 kernels, s = 2
    2:      as many kernels as wanted, means at 3x3 places; of 1,152 numbers of a window it sees
            those along 128 principal directions: .2 points of accuracy, and a third of the time
    features: the outputs, the mean over an image and its mirror image

Nothing here is trained: ``heads/kernel_network.py`` sets whitening and kernels. Whatever the
precision of the model, everything but the images that it is given is float32: the last factor
amplifies up to a hundred times what products round away. With products in bfloat16 validation
accuracy was 78.4 % instead of 85.7.

Source: Mairal, "End-to-End Kernel Learning with Supervised Convolutional Kernel Networks"
(arXiv 1605.06265), its unsupervised form.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zo_fl.engine.precision import widen
from zo_fl.engine.types import Array
from zo_fl.models.windows import mean_over_last, pool, some_at_a_time, windows

DIRECTIONS = 128  # principal ones of the second layer's windows
WHITENING = 9  # height and width of the windows that whiten
_FIRST = 128  # kernels of the first layer
_SIZE = 3  # height and width of a layer's windows
_BANDWIDTH = 0.36
_TINY = 1e-6  # added to squared norms, which are around 1 or more
_AT_ONCE = 256  # kernels whose responses are held at once

Values = Mapping[str, Mapping[str, Array]]


class KernelNetwork(nn.Module):
    """The network up to its features.

    Attributes:
      kernels: of the second layer.
      mirror: whether features are the mean over an image and its mirror image.
    """

    kernels: int
    mirror: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns features ``f32[n, 9 kernels]`` of images ``x: f32[n, H, W, c]``."""
        channels = x.shape[-1]
        of_window = channels * WHITENING**2
        shapes = {
            "whitening": {"kernel": (of_window, channels), "bias": (channels,)},
            "layer1": {"kernel": (channels * _SIZE**2, _FIRST), "mix": (_FIRST, _FIRST)},
            "directions": {"kernel": (_FIRST * _SIZE**2, DIRECTIONS)},
            "layer2": {
                "kernel": (DIRECTIONS, self.kernels),
                "mix": (self.kernels, self.kernels),
            },
        }
        values = {name: _Values(of, name=name)() for name, of in shapes.items()}
        views = [x, x[:, :, ::-1]] if self.mirror else [x]
        last = values["layer2"]
        seen = (seen_by("layer2", values, view) for view in views)
        found = [_respond(windows, last["kernel"], (3, 3)) for windows in seen]
        return _product(jnp.stack(found).mean(0), last["mix"]).reshape(len(x), -1)


class _Values(nn.Module):
    """Holds some arrays; kernels are of norm 1 from the start."""

    shapes: Mapping[str, tuple[int, ...]]

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        return {
            name: self.param(
                name, _unit_columns if len(shape) > 1 else nn.initializers.zeros, shape
            )
            for name, shape in self.shapes.items()
        }


def _unit_columns(key: Array, shape: tuple[int, int]) -> Array:
    return unit_columns(jax.random.normal(key, shape))


def unit_columns(matrix: Array) -> Array:
    """Returns ``f32[d, K]`` with columns of norm 1, but those that are 0."""
    return matrix / jnp.maximum(jnp.linalg.norm(matrix, axis=0, keepdims=True), 1e-6)


def kappa(cosines: Array) -> Array:
    """Returns the kernel of two windows of norm 1, by their cosine."""
    return jnp.exp((cosines - 1) / _BANDWIDTH)


def seen_by(name: str, values: Values, x: Array) -> Array:
    """Returns the windows ``f32[n, H', W', d]`` that a part of the network looks at.

    Args:
      name: ``whitening``, ``layer1``, ``directions`` or ``layer2``.
      values: the network's parameters; those of the parts before count.
      x: images ``f32[n, H, W, c]``.
    """
    x = widen(x)
    if name == "whitening":
        return windows(x, WHITENING)
    x = _whitened(values, x)
    if name == "layer1":
        return _padded_windows(x, _SIZE)
    halves = -(-x.shape[1] // 2), -(-x.shape[2] // 2)
    found = _respond(_padded_windows(x, _SIZE), values["layer1"]["kernel"], halves)
    seen = _padded_windows(_product(found, values["layer1"]["mix"]), _SIZE)
    return seen if name == "directions" else _product(seen, values["directions"]["kernel"])


def _whitened(values: Values, x: Array) -> Array:
    whitening = values["whitening"]
    x = _product(_padded_windows(x, WHITENING), whitening["kernel"])
    x = x + whitening["bias"][None, None, None]
    x = x - x.mean((1, 2, 3), keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean((1, 2, 3), keepdims=True) + _TINY)


def _padded_windows(x: Array, size: int) -> Array:
    """Returns the windows around all pixels, zeros beyond the edge."""
    margin = (size // 2, size // 2)
    return windows(jnp.pad(x, ((0, 0), margin, margin, (0, 0))), size)


def _respond(seen: Array, kernel: Array, places: tuple[int, int]) -> Array:
    """Returns the responses of kernels, pooled: ``f32[n, *places, K]``.

    Args:
      seen: windows ``f32[n, H, W, d]``.
      kernel: ``f32[d, K]``, of norm 1 each.
      places: rows and columns of the result.
    """
    n, *sides, dim = seen.shape
    down, across = map(_gaussian, sides, places)
    size = jnp.sqrt(dim * mean_over_last(jnp.square(seen)) + _TINY)
    flat = seen.reshape(-1, dim)

    def of_some(kernel: Array) -> Array:
        products = _product(flat, kernel)
        responses = size * kappa(products.reshape(n, *sides, -1) / size)
        return pool(pool(responses, 1, down), 2, across)

    return some_at_a_time(of_some, (kernel,), _AT_ONCE)


def _product(x: Array, kernel: Array) -> Array:
    return jnp.matmul(x, kernel, precision="highest")


def _gaussian(side: int, places: int) -> np.ndarray:
    """Returns Gaussian weights ``f32[places, side]`` around centres at equal distances.

    The distance s is that of ``places`` equal parts, rounded up; the deviation is s / sqrt(2), and
    weights end at s + 1/2. Those of one centre would sum to 1 if there were no edge.
    """
    stride = -(-side // places)
    centres = (side - 1) / 2 + stride * (np.arange(places) - (places - 1) / 2)
    distances = np.abs(np.arange(side) - centres[:, None])
    weights = np.exp(-np.square(distances / stride)) * (distances <= stride + 0.5)
    whole = np.exp(-np.square(np.arange(-stride, stride + 1) / stride)).sum()
    return (weights / whole).astype(np.float32)
