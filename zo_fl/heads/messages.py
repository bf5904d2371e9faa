"""Messages of sums: fewer bytes a number, and nothing for classes that a client does not hold.

Vectors are sent as halves, or as whole numbers times one scale a vector. One bit a class says
whether the client holds any example of it; columns of the other classes do not travel.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

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
    """Encoded vectors.

    Attributes:
      values: ``f32``, ``f16`` or ``i8[..., k]``, or two numbers a byte: ``u8[..., k / 2]``.
      scale: ``f32[...]``, one a vector; ``()`` for float32.
    """

    values: Array
    scale: Array | tuple[()]


class Message(NamedTuple):
    """A message of ``closed_form.Moments``.

    Attributes:
      gram: values ``[d (d + 1) / 2]``; below float32 correlations within [-1, 1] whose scale
        ``f32[d]`` is the client's deviations. ``()`` beside class means.
      class_sums: ``f32[d, C]``; or encoded means ``[C, k]``.
      class_counts: ``i32[C]``.
    """

    gram: Any
    class_sums: Any
    class_counts: Array


def encode(name: str, vectors: Array) -> Encoded:
    """Returns vectors ``f32[..., k]`` in one of ``ENCODINGS``."""
    if name == "float32":
        return Encoded(vectors, ())
    largest = jnp.max(jnp.abs(vectors), axis=-1)
    scale = jnp.where(largest > 0, largest, 1.0) / _LEVELS[name]
    return Encoded(_quantize(name, vectors / scale[..., None]), scale)


def decode(name: str, sent: Encoded, size: int) -> Array:
    """Returns the vectors ``f32[..., size]`` of a message."""
    if name == "float32":
        return sent.values
    return _restore(name, sent.values, size) * jnp.asarray(sent.scale)[..., None]


def encode_means(encoding: str, sums: Moments) -> Message:
    """Returns the message of a client's class means and counts."""
    means = sums.class_sums.T / jnp.maximum(sums.class_counts, 1)[:, None]
    return Message((), encode(encoding, means), sums.class_counts.astype(jnp.int32))


def decode_means(encoding: str, size: int, message: Message) -> Moments:
    """Returns the class sums and counts of a message of means of ``size`` numbers."""
    counts = message.class_counts.astype(jnp.float32)
    return Moments((), decode(encoding, message.class_sums, size).T * counts[None], counts)


def encode_moments(encoding: str, sums: Moments) -> Message:
    """Returns the message of a client's sums with a Gram matrix."""
    counts = jnp.round(sums.class_counts).astype(jnp.int32)  # noise leaves parts of examples
    if encoding == "float32":
        return Message(Encoded(sums.gram, ()), sums.class_sums, counts)
    count = jnp.maximum(sums.class_counts.sum(), 1)
    mean = sums.class_sums.sum(1, keepdims=True).T / count
    scatter = sums.gram / count - closed_form.packed_product(mean)
    dim = mean.shape[1]
    deviations = jnp.sqrt(jnp.maximum(closed_form.packed_diagonal(scatter, dim), 0))
    inverse = jnp.where(deviations > 0, 1 / jnp.maximum(deviations, 1e-20), 0)
    shares = scatter * closed_form.packed_product(inverse[None])
    quantized = _quantize(encoding, shares * _LEVELS[encoding])
    return Message(Encoded(quantized, deviations), sums.class_sums, counts)


def decode_moments(encoding: str, message: Message) -> Moments:
    """Returns the sums of a message of ``encode_moments``."""
    counts, gram = message.class_counts.astype(jnp.float32), message.gram
    if encoding == "float32":
        return Moments(gram.values, message.class_sums, counts)
    count = jnp.maximum(counts.sum(), 1)
    dim = message.class_sums.shape[0]
    mean = message.class_sums.sum(1, keepdims=True).T / count
    shares = _restore(encoding, gram.values, dim * (dim + 1) // 2) / _LEVELS[encoding]
    scatter = shares * closed_form.packed_product(gram.scale[None])
    return Moments((scatter + closed_form.packed_product(mean)) * count, message.class_sums, counts)


def num_bytes(encode: Callable[[Moments], Message], sums: Moments, counts: Array) -> Array:
    """Returns the bytes ``i32[]`` of a message without the columns of absent classes.

    ``encode`` makes it of ``sums``, arrays or shapes; ``counts`` are the client's, ``f32[C]``.
    """
    shapes = jax.eval_shape(encode, sums)
    column = trees.num_bytes((shapes.class_sums, shapes.class_counts)) // len(counts)
    bits = -(-len(counts) // 8)
    return trees.num_bytes(shapes.gram) + bits + jnp.sum(counts > 0) * column


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
