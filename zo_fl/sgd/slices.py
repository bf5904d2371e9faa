"""Clients that train a leading slice of every parameter, and the mean over those who hold an entry.

The formulas are in ``heterofl``, which says who trains a slice of which width.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zo_fl.engine import keys, losses
from zo_fl.engine.algorithm import Client, ClientBatch, ClientResult, ServerState
from zo_fl.engine.keys import Keys
from zo_fl.engine.types import Array, Params, PyTree, Task
from zo_fl.sgd import client
from zo_fl.sgd.client import LocalTraining


class Update(NamedTuple):
    """A level's contribution to the mean over the cohort.

    Attributes:
      delta: shaped like the whole model, 0 outside of the level's slice.
      holders: ``f32[L]``, 1 at the level.
      class_holders: ``f32[L, classes]``, the classes that the client holds, in the level's row.
    """

    delta: Params
    holders: Array
    class_holders: Array


def leading_slice(tree: PyTree, shapes: PyTree) -> PyTree:
    """Returns the leading slice of every leaf of ``tree``, of the shapes of another tree."""
    return jax.tree.map(lambda leaf, like: leaf[tuple(map(slice, like.shape))], tree, shapes)


def embed(tree: PyTree, like: PyTree) -> PyTree:
    """Returns every leaf as the leading slice of zeros shaped like another tree's leaf."""

    def one(leaf, whole):
        missing = np.subtract(whole.shape, leaf.shape)
        return jnp.pad(leaf, [(0, n) for n in missing])

    return jax.tree.map(one, tree, like)


def slice_client(
    task: Task, training: Callable[[ServerState], LocalTraining], level: int, num_levels: int
) -> Client:
    """Returns the client of one of L levels: it sends a slice's delta, and its set of labels.

    Args:
      task: of the narrow model.
      training: how, given what the server sent.
      level: index of the level.
      num_levels: L.
    """
    shapes = jax.eval_shape(task.init, keys.run_key(0))

    def receives(state: ServerState):
        return leading_slice((state.params, state.model_state), shapes)

    def update(state: ServerState, batch: ClientBatch, own: Keys) -> ClientResult:
        params, model_state = receives(state)
        labels = task.labels(batch.examples)
        present = losses.class_counts(labels, batch.mask, task.num_classes) > 0
        start = state._replace(params=params, model_state=model_state)
        after, _, loss = client.train(task, training(state), start, batch, own)
        return ClientResult(
            message=(optax.tree.sub(params, after), present),
            weight=jnp.any(batch.mask).astype(jnp.float32),
            model_state={},
            metrics={"loss": loss},
        )

    def decode(message, state: ServerState, own: Keys) -> Update:
        delta, present = message
        # A class that the client does not hold is none of its business, weight decay included.
        held = jax.tree.map(lambda leaf: leaf * _filled(present, leaf), delta[task.head])
        here = jax.nn.one_hot(level, num_levels)
        whole = embed(delta | {task.head: held}, state.params)
        return Update(whole, here, here[:, None] * present[None])

    return Client(update, decode, receives, holds_part=True)


def mean_over_holders(clients: Sequence[Client], head: str) -> Callable:
    """Returns the server's ``gradient`` that divides each entry by the clients that held it.

    There is one client a level; the columns of the last layer, ``head``, are classes.
    """

    def gradient(mean: Update, state: ServerState, of_round: Keys) -> tuple[Params, PyTree]:
        def divide(delta, share):
            return jnp.where(share > 0, delta / jnp.maximum(share, 1e-12), 0.0)

        shares = holder_shares(clients, head, mean, state)
        return jax.tree.map(divide, mean.delta, shares), state.strategy_state

    return gradient


def holder_shares(clients: Sequence[Client], head: str, mean: Update, state: ServerState) -> Params:
    """Returns, for each entry of the model, the share of the cohort that held it."""

    def of_level(level: int, held: Client) -> Params:
        params, _ = jax.eval_shape(held.receives, state)  # the messages' shapes tell the slice
        share = dict.fromkeys(params, mean.holders[level]) | {head: mean.class_holders[level]}
        filled = {
            name: jax.tree.map(functools.partial(_filled, share[name]), part)
            for name, part in params.items()
        }
        return embed(filled, state.params)

    shares = [of_level(level, held) for level, held in enumerate(clients)]
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *shares)


def _filled(value: Array, like: Array) -> Array:
    """Returns ``f32[]``, or ``f32[classes]`` of the last axis, in the shape of an array."""
    return jnp.broadcast_to(value, like.shape).astype(jnp.float32)
