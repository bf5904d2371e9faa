"""From what all clients of a round sent to one update: the mean, or what a reducer makes of it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zo_fl.engine import trees
from zo_fl.engine.algorithm import Cohort, Group, Phase, Reducer, ServerState
from zo_fl.engine.keys import Keys
from zo_fl.engine.types import Array, PyTree


class RoundRecord(NamedTuple):
    """The messages of a group's clients: with the keys, all that is needed to replay the round.

    Attributes:
      cohort: who took part.
      messages: the messages, stacked, leading ``C``; ``()`` unless the clients replay.
      weights: ``f32[C]``; 0 for padding clients. ``()`` unless the clients replay.
    """

    cohort: Cohort
    messages: PyTree
    weights: PyTree


class Sums(NamedTuple):
    """Sums over clients, each times its weight (``update``: times 1 for a plain sum)."""

    update: PyTree
    model_state: PyTree
    metrics: dict[str, Array]
    weight: Array


def reduce(phase: Phase, records: Sequence[RoundRecord], sums, state: ServerState, keys: Keys):
    """Returns the mean of all clients' updates, or what the server's reducer makes of them.

    Where a group replays, from its messages alone: the server and a late joiner do the same sums,
    bit for bit.

    Args:
      phase: of the round.
      records: one a group; of one that does not replay, with updates in place of messages where
        the reducer looks at all of them.
      sums: ``Sums`` of each group; not used where it replays.
      state: the server's, before the round.
      keys: of the round.
    """
    reducer = phase.server.reducer
    if reducer.middle is not None:
        parts = [_updates(g, record, state, keys) for g, record in zip(phase.groups, records)]  # noqa: B905
        stacked = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
        return reducer.middle(stacked, jnp.concatenate([record.weights for record in records]))
    if reducer.factors is not None:
        records = _scaled(reducer.factors, records)
    weights = [
        jnp.sum(record.weights) if group.client.replays else part.weight
        for group, record, part in zip(phase.groups, records, sums, strict=True)
    ]
    total = None if reducer.is_sum else jnp.maximum(add(*weights), 1e-12)

    def reduced(group: Group, record: RoundRecord, part) -> PyTree:
        if group.client.replays:
            return _decoded_sum(group, record, state, keys, total)
        update = part.update
        if reducer.looks_at_all:
            update = trees.weighted_sum(record.messages, shares(reducer, record.weights))
        return update if total is None else trees.scale_down(update, total)

    return add(*map(reduced, phase.groups, records, sums))


def add(*summands: PyTree) -> PyTree:
    """Returns the sum of some trees."""
    return jax.tree.map(lambda first, *others: sum(others, first), *summands)


def mean(sums: Sequence[PyTree], weights: Sequence[Array]) -> PyTree:
    """Returns the sum of some trees over the sum of their weights; ``{}`` of no trees."""
    return trees.scale_down(add(*sums), add(*weights)) if sums else {}


def shares(reducer: Reducer, weights: Array) -> Array:
    """Returns ``f32[C]``, each client's share in the sum of the updates; 1 or 0 in a plain sum."""
    return (weights > 0).astype(weights.dtype) if reducer.is_sum else weights


def _updates(group: Group, record: RoundRecord, state: ServerState, keys: Keys) -> PyTree:
    """Returns the updates of a group's clients, stacked."""
    if not group.client.replays:
        return record.messages
    state = state._replace(opt_state=())
    return jax.lax.map(
        lambda sent: group.client.decode(sent[0], state, keys.of(sent[1])),
        (record.messages, record.cohort.client_ids),
    )


def _scaled(factors: Callable, records: Sequence[RoundRecord]) -> list[RoundRecord]:
    """Returns the records with each message times its factor."""
    norms = jnp.concatenate([jax.vmap(trees.float_norm)(record.messages) for record in records])
    found = factors(norms, jnp.concatenate([record.weights for record in records]))
    ends = np.cumsum([len(record.weights) for record in records])[:-1]
    return [
        record._replace(messages=jax.vmap(trees.scale_floats)(part, record.messages))
        for record, part in zip(records, jnp.split(found, ends), strict=True)
    ]


def _decoded_sum(
    group: Group, record: RoundRecord, state: ServerState, keys: Keys, total: Array | None
) -> PyTree:
    """Returns the sum of a group's decoded messages, in the cohort's order, each times its share.

    ``total`` is the weight ``f32[]`` of all clients of all groups; None for a plain sum.
    """
    state = state._replace(opt_state=())

    def decode(message, client_id):
        return group.client.decode(message, state, keys.of(client_id))

    def add_one(sum_, item):
        message, client_id, weight = item
        update = decode(message, client_id)
        share = (weight > 0).astype(weight.dtype) if total is None else weight / total
        # A padding client's message may be NaN, and 0 * NaN would spread.
        added = lambda t, u: t + share * jnp.where(weight > 0, u, 0)  # noqa: E731
        return jax.tree.map(added, sum_, update), None

    items = (record.messages, record.cohort.client_ids, record.weights)
    first = jax.tree.map(lambda leaf: leaf[0], items)
    zeros = trees.zeros(jax.eval_shape(decode, first[0], first[1]))
    return jax.lax.scan(add_one, zeros, items)[0]
