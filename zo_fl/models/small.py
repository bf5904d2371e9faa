"""Small models for tests, first experiments and benchmarks; attributes as in ``models.create``.

Source: ``CNNLarge`` is the CNN of the EMNIST benchmarks in "Adaptive Federated Optimization" (Reddi
et al. 2021, arXiv:2003.00295), without dropout. The others are made for this project.
"""

import functools
import math

import flax.linen as nn
import jax.numpy as jnp

from zo_fl.engine.types import Array
from zo_fl.models.layers import Conv, Dense, Head, max_pool, mean_pool, normalize, rescale

CHANNELS = (16, 32, 64)


class CNN(nn.Module):
    """Three 3x3 convolutions with norm and relu: 24,346 parameters with a norm and 10 classes.

    A 2x2 max-pooling follows each but the last.
    """

    num_classes: int
    norm: str
    conv: str = "auto"
    width: float = 1.0
    share: float = 1.0
    stages: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool, mask: Array | None = None) -> Array:
        """Returns logits ``f32[n, num_classes]`` of images ``x: f32[n, H, W, c]``."""
        norm = functools.partial(normalize, self.norm, train=train, mask=mask, share=self.share)
        outputs = []
        for index, channels in enumerate(CHANNELS):
            conv = Conv(
                math.ceil(self.width * channels),
                use_bias=self.norm == "none",
                implementation=self.conv,
                name=f"conv{index}",
            )
            x = norm(f"norm{index}", conv(x))
            if index < len(CHANNELS) - 1:
                x = max_pool(x)  # before the relu: the same maxima, a quarter of the work
            x = nn.relu(x)
            outputs.append(x)
        seen = [mean_pool(x) for x in (outputs if self.stages else outputs[-1:])]
        return Head(self.num_classes, name="head")(jnp.concatenate(seen, axis=-1))


class MLP(nn.Module):
    """Two dense layers, ``hidden_size`` units between them."""

    num_classes: int
    hidden_size: int = 64
    width: float = 1.0
    share: float = 1.0

    @nn.compact
    def __call__(self, x: Array, *, train: bool, mask: Array | None = None) -> Array:
        """Returns logits ``f32[n, num_classes]`` of images ``x: f32[n, H, W, c]``."""
        del mask
        units = math.ceil(self.width * self.hidden_size)
        x = Dense(units, name="hidden")(x.reshape(x.shape[0], -1))
        x = nn.relu(rescale(x, train=train, share=self.share))
        return Head(self.num_classes, name="head")(x)


class CNNLarge(nn.Module):
    """The benchmark CNN: 1,626,442 parameters for 32x32x3 images and 10 classes."""

    num_classes: int
    conv: str = "auto"

    @nn.compact
    def __call__(self, x: Array, *, train: bool, mask: Array | None = None) -> Array:
        """Returns logits ``f32[n, num_classes]`` of images ``x: f32[n, H, W, c]``."""
        del train, mask
        options = {"padding": "VALID", "use_bias": True, "implementation": self.conv}
        x = nn.relu(Conv(32, name="conv0", **options)(x))
        x = nn.relu(Conv(64, pool=True, name="conv1", **options)(x))
        x = nn.relu(Dense(128, name="hidden")(x.reshape(x.shape[0], -1)))
        return Head(self.num_classes, name="head")(x)
