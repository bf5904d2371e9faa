"""Arithmetic on trees of arrays: only what ``jax.tree`` and ``optax.tree`` lack."""

import jax
import jax.numpy as jnp
import optax

from zo_fl.engine.types import Array, PyTree


def weighted_sum(stacked: PyTree, weights: Array) -> PyTree:
    """Returns the sum of leaves ``f32[C, ...]`` over the first axis, times the weights ``f32[C]``.

    An entry of weight 0 adds nothing, even where it is NaN: it is a padding client.
    """

    def one(leaf):
        share = weights.reshape(weights.shape + (1,) * (leaf.ndim - 1))
        return jnp.sum(jnp.where(share > 0, share * leaf, 0), axis=0)

    return jax.tree.map(one, stacked)


def scale_down(tree: PyTree, divisor: Array) -> PyTree:
    """Returns every leaf divided by ``divisor``."""
    return jax.tree.map(lambda leaf: leaf / divisor, tree)


def squeeze(tree: PyTree) -> PyTree:
    """Returns every leaf without its leading axis, which must have length one."""
    return jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0), tree)


def num_bytes(tree: PyTree) -> int:
    """Returns the bytes of all leaves (arrays or ``jax.ShapeDtypeStruct``)."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def zeros(shapes: PyTree) -> PyTree:
    """Returns zeros of the shapes and dtypes of a tree of arrays or ``jax.ShapeDtypeStruct``."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def float_norm(tree: PyTree) -> Array:
    """Returns ``f32[]``, the length of all floating-point numbers of a tree."""
    return optax.tree.norm([leaf for leaf in jax.tree.leaves(tree) if _is_float(leaf)])


def scale_floats(factor: Array, tree: PyTree) -> PyTree:
    """Returns a tree times ``f32[]``; whole numbers in it (labels, counts) stay."""
    return jax.tree.map(lambda leaf: factor * leaf if _is_float(leaf) else leaf, tree)


def _is_float(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)
