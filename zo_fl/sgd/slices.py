"""Clients that train a narrower model, nested in the whole one, and the mean over who held what.

A sub-model is the *leading slice* of every parameter (the first channels). It is cut out, not
masked: the client's work and memory are those of the small model.

Source: HeteroFL, Diao, Ding, Tarokh, ICLR 2021 (arXiv 2010.01264) and its public code.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from zo_fl.engine import keys
from zo_fl.engine.strategy import ClientStrategy, Finalize
from zo_fl.engine.task import Task
from zo_fl.engine.types import Array, ClientBatch, ClientResult, Params, PyTree, ServerState
from zo_fl.sgd import client as first_order
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
    return jax.tree.map(
        lambda leaf, whole: jnp.pad(
            leaf, [(0, n - m) for m, n in zip(leaf.shape, whole.shape, strict=True)]
        ),
        tree,
        like,
    )


def slice_strategy(
    task: Task,
    training: Callable[[ServerState], LocalTraining],
    *,
    level: int,
    num_levels: int,
) -> ClientStrategy:
    """Returns the strategy of one level: trains a slice, sends its delta and its set of labels.

    Args:
      task: of the narrow model.
      training: how, given what the server sent.
      level: index of the level.
      num_levels: L.
    """
    shapes = jax.eval_shape(task.init, keys.run_key(0))

    def receives(state: ServerState):
        return leading_slice((state.params, state.model_state), shapes)

    def client_update(state: ServerState, batch: ClientBatch, run_key: Array) -> ClientResult:
        params, model_state = receives(state)
        labels = task.labels(batch.examples)
        is_label = labels[:, None] == jnp.arange(task.num_classes)[None]
        present = jnp.any(is_label & batch.mask[:, None], axis=0)

        start = state._replace(params=params, model_state=model_state)
        after, _, loss = first_order.train(task, training(state), start, batch, run_key)
        weight = jnp.any(batch.mask).astype(jnp.float32)
        message = (optax.tree.sub(params, after), present)
        return ClientResult(message, weight, {}, {"loss": loss})

    def decode(message, client_id, state: ServerState, run_key):
        del client_id, run_key
        delta, present = message
        # A class that the client does not hold is none of its business, weight decay included.
        own = jax.tree.map(lambda leaf: leaf * _as_columns(present, leaf), delta[task.head])
        here = jax.nn.one_hot(level, num_levels)
        update = embed(delta | {task.head: own}, state.params)
        return Update(update, here, here[:, None] * present[None])

    return ClientStrategy(client_update, decode, receives, has_part=True)


def mean_over_holders(strategies: Sequence[ClientStrategy], head: str) -> Finalize:
    """Returns the ``finalize`` that divides each entry by the clients that held it.

    Args:
      strategies: one a level, in the order of ``Update.holders``.
      head: name of the last layer, whose columns are classes.
    """

    def finalize(mean: Update, state: ServerState, run_key):
        del run_key
        shares = holder_shares(strategies, head, mean, state)
        gradient = jax.tree.map(
            lambda delta, share: jnp.where(share > 0, delta / jnp.maximum(share, 1e-12), 0.0),
            mean.delta,
            shares,
        )
        return gradient, state.strategy_state

    return finalize


def holder_shares(strategies, head: str, mean: Update, state: ServerState) -> Params:
    """Returns, for each entry of the model, the share of the cohort that held it."""

    def of_level(strategy: ClientStrategy, holders, class_holders):
        # The messages' shapes tell the slice.
        params, _ = jax.eval_shape(strategy.receives, state)

        def ones(leaf):
            return jnp.full(leaf.shape, holders)

        def columns(leaf):
            return jnp.broadcast_to(_as_columns(class_holders, leaf), leaf.shape)

        share = {
            name: jax.tree.map(columns if name == head else ones, part)
            for name, part in params.items()
        }
        return embed(share, state.params)

    shares = [
        of_level(strategy, mean.holders[i], mean.class_holders[i])
        for i, strategy in enumerate(strategies)
    ]
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *shares)


def _as_columns(classes: Array, leaf: Array) -> Array:
    """Returns ``f32[classes]`` with as many axes as ``leaf``, the classes last."""
    return classes.reshape((1,) * (leaf.ndim - 1) + (-1,)).astype(jnp.float32)
