"""Sums as clients send them: fewer bytes a number, and nothing for classes that nobody holds.

Vectors are sent as halves, or as whole numbers times one scale a vector. Of a client's classes a
bit each says whether it holds any example; columns of the others do not travel.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zo_fl.engine import trees
from zo_fl.engine.fields import Field
from zo_fl.engine.types import Array
from zo_fl.heads import closed_form
from zo_fl.heads.closed_form import Moments

ENCODINGS = ("float32", "float16", "int8", "int4")
_LEVELS = {"float16": 1.0, "int8": 127.0, "int4": 7.0}

ENCODING = Field("float32", "number format of messages", ENCODINGS)


class Encoded(NamedTuple):
    """Vectors as they are sent.

    Attributes:
      values: ``f32``, ``f16`` or ``i8[..., k]``, or two numbers a byte: ``u8[..., k / 2]``.
      scale: ``f32[...]``, one a vector; ``()`` for float32.
    """

    values: Array
    scale: Array | tuple[()]


class ClassMeans(NamedTuple):
    """A message of class means.

    Attributes:
      means: ``[C, k]``, the mean feature of each class.
      class_counts: ``i32[C]``.
    """

    means: Encoded
    class_counts: Array


class SecondMoments(NamedTuple):
    """A message of ``closed_form.Moments``.

    Attributes:
      gram: ``f32[d (d + 1) / 2]``, or correlations within [-1, 1] in another encoding.
      deviations: ``f32[d]``, the client's own; ``()`` for float32.
      class_sums: ``f32[d, C]``.
      class_counts: ``i32[C]``.
    """

    gram: Array
    deviations: Array | tuple[()]
    class_sums: Array
    class_counts: Array


def encode(name: str, vectors: Array) -> Encoded:
    """Returns vectors ``f32[..., k]`` in one of ``ENCODINGS``."""
    if name == "float32":
        return Encoded(vectors, ())
    largest = jnp.max(jnp.abs(vectors), axis=-1)
    scale = jnp.where(largest > 0, largest, 1.0) / _LEVELS[name]
    return Encoded(_quantize(name, vectors / scale[..., None]), scale)


def decode(name: str, sent: Encoded, size: int) -> Array:
    """Returns the vectors ``f32[..., size]`` that were sent."""
    if name == "float32":
        return sent.values
    return _restore(name, sent.values, size) * jnp.asarray(sent.scale)[..., None]


def encoded_bytes(name: str, size: int) -> int:
    """Returns the bytes of one vector of ``size`` numbers, its scale included."""
    return trees.num_bytes(jax.eval_shape(lambda: encode(name, jnp.zeros(size))))


def encode_means(encoding: str, sums: Moments) -> ClassMeans:
    """Returns the message of a client's class sums and counts."""
    means = sums.class_sums.T / jnp.maximum(sums.class_counts, 1)[:, None]
    return ClassMeans(encode(encoding, means), sums.class_counts.astype(jnp.int32))


def decode_means(encoding: str, size: int, message: ClassMeans) -> Moments:
    """Returns the class sums and counts that a message of vectors of ``size`` stands for."""
    counts = message.class_counts.astype(jnp.float32)
    return Moments((), decode(encoding, message.means, size).T * counts[None], counts)


def means_bytes(encoding: str, dim: int, counts: Array) -> Array:
    """Returns the bytes ``i32[]`` of a client's means; it has ``counts`` ``f32[C]`` examples."""
    each = encoded_bytes(encoding, dim) + 4  # and a count
    return _bits(counts) + jnp.sum(counts > 0) * each


def encode_moments(encoding: str, sums: Moments) -> SecondMoments:
    """Returns the message of a client's sums."""
    counts = sums.class_counts.astype(jnp.int32)
    if encoding == "float32":
        return SecondMoments(sums.gram, (), sums.class_sums, counts)
    count = jnp.maximum(sums.class_counts.sum(), 1)
    mean = sums.class_sums.sum(1, keepdims=True).T / count
    scatter = sums.gram / count - closed_form.packed_product(mean)
    dim = mean.shape[1]
    deviations = jnp.sqrt(jnp.maximum(closed_form.packed_diagonal(scatter, dim), 0))
    inverse = jnp.where(deviations > 0, 1 / jnp.maximum(deviations, 1e-20), 0)
    shares = scatter * closed_form.packed_product(inverse[None])
    quantized = _quantize(encoding, shares * _LEVELS[encoding])
    return SecondMoments(quantized, deviations, sums.class_sums, counts)


def decode_moments(encoding: str, message: SecondMoments) -> Moments:
    """Returns the sums that a message stands for."""
    counts = message.class_counts.astype(jnp.float32)
    if encoding == "float32":
        return Moments(message.gram, message.class_sums, counts)
    count = jnp.maximum(counts.sum(), 1)
    dim = message.class_sums.shape[0]
    mean = message.class_sums.sum(1, keepdims=True).T / count
    shares = _restore(encoding, message.gram, dim * (dim + 1) // 2) / _LEVELS[encoding]
    deviations = jnp.asarray(message.deviations)[None]
    scatter = shares * closed_form.packed_product(deviations) + closed_form.packed_product(mean)
    return Moments(scatter * count, message.class_sums, counts)


def moments_bytes(encoding: str, dim: int, counts: Array) -> Array:
    """Returns the bytes ``i32[]`` of a client's moments; it has ``counts`` ``f32[C]`` examples."""
    shapes = jax.eval_shape(
        lambda: encode_moments(encoding, closed_form.no_moments(dim, len(counts)))
    )
    fixed = trees.num_bytes((shapes.gram, shapes.deviations))
    return fixed + _bits(counts) + jnp.sum(counts > 0) * (4 * dim + 4)


def _bits(counts: Array) -> int:
    """Returns the bytes that say which classes a client holds: a bit each."""
    return -(-len(counts) // 8)


def _quantize(name: str, values: Array) -> Array:
    if name == "float16":
        return values.astype(jnp.float16)
    whole = jnp.clip(jnp.round(values), -_LEVELS[name], _LEVELS[name]).astype(jnp.int8)
    if name == "int8":
        return whole
    if whole.shape[-1] % 2:
        whole = jnp.concatenate([whole, jnp.zeros_like(whole[..., :1])], axis=-1)
    pairs = (whole + 8).astype(jnp.uint8).reshape(*whole.shape[:-1], -1, 2)
    return pairs[..., 0] * 16 + pairs[..., 1]


def _restore(name: str, sent: Array, size: int) -> Array:
    if name != "int4":
        return sent.astype(jnp.float32)
    pairs = jnp.stack([sent // 16, sent % 16], axis=-1)
    return pairs.reshape(*sent.shape[:-1], -1)[..., :size].astype(jnp.float32) - 8
