"""Fewer bytes for vectors that are sent: halves, or whole numbers times one scale a vector."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zo_fl.engine import trees
from zo_fl.engine.types import Array

ENCODINGS = ("float32", "float16", "int8", "int4")
_LEVELS = {"float16": 1.0, "int8": 127.0, "int4": 7.0}


class Encoded(NamedTuple):
    """Vectors as they are sent.

    Attributes:
      values: ``f32``, ``f16`` or ``i8[..., k]``, or two numbers a byte: ``u8[..., k / 2]``.
      scale: ``f32[...]``, one a vector; ``()`` of float32.
    """

    values: Array
    scale: Array | tuple[()]


def encode(name: str, vectors: Array) -> Encoded:
    """Returns vectors ``f32[..., k]`` in one of ``ENCODINGS``; k is even for ``int4``."""
    if name == "float32":
        return Encoded(vectors, ())
    largest = jnp.max(jnp.abs(vectors), axis=-1)
    scale = jnp.where(largest > 0, largest, 1.0) / _LEVELS[name]
    return Encoded(_quantize(name, vectors / scale[..., None]), scale)


def decode(name: str, sent: Encoded) -> Array:
    """Returns the vectors ``f32[..., k]`` that were sent."""
    if name == "float32":
        return sent.values
    return _restore(name, sent.values) * jnp.asarray(sent.scale)[..., None]


def num_bytes(name: str, size: int) -> int:
    """Returns the bytes of one vector of ``size`` numbers, its scale included."""
    shapes = jax.eval_shape(lambda: encode(name, jnp.zeros(size)))
    return trees.num_bytes(shapes)


def encode_shares(name: str, shares: Array) -> Array:
    """Returns numbers of [-1, 1] without a scale: ``f32[k]`` in one of ``ENCODINGS``."""
    if name == "float32":
        return shares
    padding = jnp.zeros(shares.shape[-1] % 2 if name == "int4" else 0, shares.dtype)
    return _quantize(name, jnp.concatenate([shares, padding]) * _LEVELS[name])


def decode_shares(name: str, sent: Array, size: int) -> Array:
    """Returns the numbers ``f32[size]`` that ``encode_shares`` was given."""
    return sent if name == "float32" else _restore(name, sent)[:size] / _LEVELS[name]


def _quantize(name: str, values: Array) -> Array:
    if name == "float16":
        return values.astype(jnp.float16)
    whole = jnp.clip(jnp.round(values), -_LEVELS[name], _LEVELS[name]).astype(jnp.int8)
    if name == "int8":
        return whole
    pairs = (whole + 8).astype(jnp.uint8).reshape(*whole.shape[:-1], -1, 2)
    return pairs[..., 0] * 16 + pairs[..., 1]


def _restore(name: str, sent: Array) -> Array:
    if name != "int4":
        return sent.astype(jnp.float32)
    pairs = jnp.stack([sent // 16, sent % 16], axis=-1)
    return pairs.reshape(*sent.shape[:-1], -1).astype(jnp.float32) - 8
