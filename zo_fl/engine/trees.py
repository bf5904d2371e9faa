"""Arithmetic on trees of arrays: only what ``jax.tree`` and ``optax.tree`` lack."""

import jax
import jax.numpy as jnp

from zo_fl.engine.types import Array, PyTree


def weighted_sum(stacked: PyTree, weights: Array) -> PyTree:
    """Returns ``sum_i weights[i] * stacked[i]`` over the leading axis of every leaf.

    An entry of weight 0 adds nothing, even where it is NaN: it is a padding client.

    Args:
      stacked: leaves ``f32[C, ...]``.
      weights: ``f32[C]``.
    """

    def one(leaf):
        share = weights.reshape(weights.shape + (1,) * (leaf.ndim - 1))
        return jnp.sum(jnp.where(share > 0, share * leaf, 0), axis=0)

    return jax.tree.map(one, stacked)


def scale_down(tree: PyTree, divisor: Array) -> PyTree:
    """Returns every leaf divided by ``divisor``."""
    return jax.tree.map(lambda leaf: leaf / divisor, tree)


def expand(tree: PyTree) -> PyTree:
    """Returns every leaf with a new leading axis of length one."""
    return jax.tree.map(lambda leaf: leaf[None], tree)


def squeeze(tree: PyTree) -> PyTree:
    """Returns every leaf without its leading axis, which must have length one."""
    return jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0), tree)


def num_bytes(tree: PyTree) -> int:
    """Returns the bytes of all leaves (arrays or ``jax.ShapeDtypeStruct``)."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
