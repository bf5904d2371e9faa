"""Which of a client's examples each of its zeroth-order steps sees, in which microbatches."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zo_fl.engine import cohorts
from zo_fl.engine.types import Array, Examples
from zo_fl.zo.probing import Probing


class Order(NamedTuple):
    """Examples of steps; of one step, without the leading axis, inside a loop over them.

    Attributes:
      rows: ``i32[k, b]`` into the client's examples; None if one step sees all, in their order.
      mask: ``bool[k, b]``.
    """

    rows: Array | None
    mask: Array


class Microbatches(NamedTuple):
    """Some examples as arrays with leading axes ``[batches, size]``, padded by masked ones."""

    examples: Examples
    mask: Array

    @property
    def weights(self) -> Array:
        """``f32[batches * size]``: of each example in the mean over them."""
        return self.mask.reshape(-1) / jnp.maximum(jnp.sum(self.mask), 1)


def draw(fields: Probing, mask: Array, key: Array) -> Order:
    """Returns the examples of each local step of a client whose examples have this mask.

    Mini-batches go through the client's shuffled examples, again and again if there are more steps
    than batches.
    """
    if fields.local_steps == 1 and not fields.batch_size:
        return Order(None, mask[None])
    size = fields.batch_size or -(-mask.shape[0] // fields.local_steps)
    batches_an_epoch = -(-mask.shape[0] // size)
    epoch_keys = jax.random.split(key, -(-fields.local_steps // batches_an_epoch))
    orders = jax.vmap(cohorts.epoch_order, in_axes=(0, None, None))(epoch_keys, mask, size)
    return Order(*(leaf.reshape(-1, size)[: fields.local_steps] for leaf in orders))


def first(order: Order) -> Order:
    """Returns the first step's."""
    return jax.tree.map(lambda leaf: leaf[0], order)


def gather(examples: Examples, step: Order, size: int) -> Microbatches:
    """Returns what a step sees of a client's examples, ``size`` a microbatch; 0 = all in one."""
    if step.rows is not None:
        examples = jax.tree.map(lambda leaf: leaf[step.rows], examples)
    count = step.mask.shape[0]
    size = min(size or count, count)
    missing = -count % size

    def split(leaf):
        padded = jnp.pad(leaf, [(0, missing)] + [(0, 0)] * (leaf.ndim - 1))
        return padded.reshape(-1, size, *leaf.shape[1:])

    return Microbatches(jax.tree.map(split, examples), split(step.mask))
