"""What a client says of each class that it holds: how many examples, and their mean feature.

A bit a class says which these are; of the others nothing is sent.
"""

from typing import NamedTuple

import jax.numpy as jnp

from zo_fl.engine.types import Array
from zo_fl.heads import encodings
from zo_fl.heads.encodings import Encoded


class ClassMeans(NamedTuple):
    """A message.

    Attributes:
      means: ``[C, k]``.
      class_counts: ``i32[C]``.
    """

    means: Encoded
    class_counts: Array


def to_message(encoding: str, class_sums: Array, class_counts: Array) -> ClassMeans:
    """Returns what a client sends of sums ``f32[k, C]`` and counts ``f32[C]`` of its classes."""
    means = class_sums.T / jnp.maximum(class_counts, 1)[:, None]
    return ClassMeans(encodings.encode(encoding, means), class_counts.astype(jnp.int32))


def from_message(encoding: str, message: ClassMeans) -> tuple[Array, Array]:
    """Returns the sums ``f32[k, C]`` and counts ``f32[C]`` that a message stands for."""
    counts = message.class_counts.astype(jnp.float32)
    return encodings.decode(encoding, message.means).T * counts[None], counts


def message_bytes(encoding: str, dim: int, labels: Array, mask: Array, classes: int) -> Array:
    """Returns the bytes ``i32[]`` of a client's message of ``dim`` numbers a class."""
    held = jnp.zeros(classes, bool).at[labels].max(mask)
    each = encodings.num_bytes(encoding, dim) + 4  # and a count
    return -(-classes // 8) + jnp.sum(held) * each
