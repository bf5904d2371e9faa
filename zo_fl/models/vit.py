"""The paper's Vision Transformer.

The paper calls it ViT-B/16, but its table of layers describes another model, which this is: 6
pre-norm blocks of width 512 with 8 heads, patches of 4x4 pixels, no dropout, and no LayerNorm
before the classifier.

Source: Dosovitskiy et al. 2021 (arXiv:2010.11929); ZOWarmUp, Fig. 9 and Table 5.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from zo_fl.engine.precision import widen
from zo_fl.engine.types import Array
from zo_fl.models import layers

INIT_STD = 0.02
WIDTH, NUM_LAYERS, NUM_HEADS, MLP_SIZE = 512, 6, 8, 2048
PATCH_SIZE = 4  # side of a patch in pixels

_normal = nn.initializers.normal(INIT_STD)
Dense = functools.partial(layers.Dense, kernel_init=_normal)
LayerNorm = functools.partial(
    nn.LayerNorm, epsilon=layers.NORM_EPSILON, use_fast_variance=False
)  # computes in float32 whatever the dtype of its input


class Attention(nn.Module):
    """Multi-head self-attention."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns ``f32[n, T, width]`` from ``x: f32[n, T, width]``."""
        n, tokens, width = x.shape
        size = width // NUM_HEADS
        qkv = Dense(3 * width, name="qkv")(x).reshape(n, tokens, 3, NUM_HEADS, size)
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        scores = widen(jnp.einsum("nqhd,nkhd->nhqk", query, key))
        weights = jax.nn.softmax(scores * size**-0.5).astype(x.dtype)
        y = jnp.einsum("nhqk,nkhd->nqhd", weights, value)
        return Dense(width, name="out")(y.reshape(n, tokens, width))


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to its input."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns ``f32[n, T, width]`` from ``x: f32[n, T, width]``."""
        y = LayerNorm(name="norm1")(x).astype(x.dtype)
        x = x + Attention(name="attention")(y)
        y = LayerNorm(name="norm2")(x).astype(x.dtype)
        y = Dense(MLP_SIZE, name="mlp1")(y)
        return x + Dense(x.shape[-1], name="mlp2")(nn.gelu(y, approximate=True))


class ViT(nn.Module):
    """The paper's ViT: 18,978,314 parameters for 32x32x3 images and 10 classes.

    Weights start from N(0, 0.02), class token and positions from a truncated N(0, 0.02), and biases
    at 0.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool, mask: Array | None = None) -> Array:
        """Returns logits ``f32[n, num_classes]`` of images ``x: f32[n, H, W, c]``."""
        del train, mask
        x = Dense(WIDTH, name="patches")(_split(x))
        truncated = nn.initializers.truncated_normal(
            INIT_STD, lower=-2 / INIT_STD, upper=2 / INIT_STD
        )
        cls = self.param("cls", truncated, (1, 1, WIDTH))
        cls = jnp.broadcast_to(cls, (x.shape[0], 1, WIDTH)).astype(x.dtype)
        x = jnp.concatenate([cls, x], axis=1)
        x = x + self.param("positions", truncated, (1, x.shape[1], WIDTH)).astype(x.dtype)
        for index in range(NUM_LAYERS):
            x = Block(name=f"block{index + 1}")(x)
        return layers.Head(self.num_classes, kernel_init=_normal, name="head")(x[:, 0])


def _split(x: Array) -> Array:
    """Returns patches ``f32[n, T, p * p * c]`` of images ``f32[n, H, W, c]``, row by row."""
    n, height, width, channels = x.shape
    p = PATCH_SIZE
    if height % p or width % p:
        raise ValueError(f"{height}x{width} images do not split into {p}x{p} patches")
    x = x.reshape(n, height // p, p, width // p, p, channels).swapaxes(2, 3)
    return x.reshape(n, -1, p * p * channels)
