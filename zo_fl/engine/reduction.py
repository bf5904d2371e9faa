"""From what all clients of a round sent to one update: mean, sum, or what ``robust`` says."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zo_fl.engine import robust, trees
from zo_fl.engine.phase import Phase
from zo_fl.engine.strategy import Group, RoundRecord
from zo_fl.engine.types import Array, PyTree, ServerState


class Sums(NamedTuple):
    """Sums over clients, each client times its weight (``update``: times 1 for a plain sum)."""

    update: PyTree
    model_state: PyTree
    metrics: dict[str, Array]
    weight: Array


def reduce(phase: Phase, records, sums, state: ServerState, run_key) -> PyTree:
    """Returns the weighted mean of all clients' updates, or their sum, as the aggregation asks.

    Where a group replays, from its messages alone: the server and a late joiner do the same sums,
    bit for bit.

    Args:
      phase: of the round.
      records: what was sent, one a group.
      sums: of each group; None where it replays.
      state: the server's, before the round.
      run_key: ``key[]``.
    """
    if phase.robust.by_coordinate(phase.aggregation.reduce):
        return _by_coordinate(phase, records, state, run_key)
    records = _clipped(phase, records)
    weights = [
        jnp.sum(record.weights) if group.strategy.replays else part.weight
        for group, record, part in zip(phase.groups, records, sums, strict=True)
    ]
    total = None
    if phase.aggregation.reduce == "mean":
        total = jnp.maximum(add(*weights), 1e-12)

    def reduced(group: Group, record: RoundRecord, part) -> PyTree:
        if group.strategy.replays:
            return _decode_record(group.strategy, record, state, run_key, total)
        update = part.update
        if phase.robust.looks_at_all:
            update = trees.weighted_sum(record.messages, shares(phase)(record.weights))
        return update if total is None else trees.scale_down(update, total)

    parts = map(reduced, phase.groups, records, sums)
    return add(*parts)


def add(*summands: PyTree) -> PyTree:
    """Returns the sum of some trees."""
    return jax.tree.map(lambda first, *others: sum(others, first), *summands)


def mean(sums: Sequence[PyTree], weights: Sequence[Array]) -> PyTree:
    """Returns the sum of some trees over the sum of their weights; ``{}`` of no trees."""
    if not sums:
        return {}
    return trees.scale_down(add(*sums), add(*weights))


def shares(phase: Phase) -> Callable[[Array], Array]:
    """Returns what clients of some weights count in the sum of their updates."""
    return _unit if phase.aggregation.reduce == "sum" else lambda weights: weights


def _unit(weights: Array) -> Array:
    """Returns 1 for every client that takes part, 0 for padding and drop-outs."""
    return (weights > 0).astype(weights.dtype)


def _clipped(phase: Phase, records: Sequence[RoundRecord]) -> Sequence[RoundRecord]:
    """Returns what was sent, each message at most as long as the cohort's rule allows."""
    if not phase.robust.clips(phase.aggregation.reduce):
        return records
    norms = jnp.concatenate([robust.norms(record.messages) for record in records])
    weights = jnp.concatenate([record.weights for record in records])
    factors = robust.clip_factors(norms, weights)
    ends = np.cumsum([len(record.weights) for record in records])[:-1]
    return [
        record._replace(messages=jax.vmap(robust.scale)(part, record.messages))
        for record, part in zip(records, jnp.split(factors, ends), strict=True)
    ]


def _by_coordinate(phase: Phase, records: Sequence[RoundRecord], state, run_key) -> PyTree:
    """Returns the median, or trimmed mean, of all clients' updates, coordinate by coordinate."""
    state = state._replace(opt_state=())

    def updates(group: Group, record: RoundRecord) -> PyTree:
        if not group.strategy.replays:  # they were decoded where they arose
            return record.messages
        return jax.lax.map(
            lambda sent: group.strategy.decode(sent[0], sent[1], state, run_key),
            (record.messages, record.cohort.client_ids),
        )

    parts = map(updates, phase.groups, records)
    stacked = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    weights = jnp.concatenate([record.weights for record in records])
    return phase.robust.middle(stacked, weights)


def _decode_record(strategy, record: RoundRecord, state, run_key, total: Array | None) -> PyTree:
    """Returns the sum of a group's decoded messages, in the cohort's order, each times its share.

    Args:
      strategy: of the group.
      record: what was sent.
      state: the server's, before the round.
      run_key: ``key[]``.
      total: ``f32[]`` weight of all clients of all groups; None for a plain sum.
    """
    state = state._replace(opt_state=())

    def add(sum_, item):
        message, client_id, weight = item
        update = strategy.decode(message, client_id, state, run_key)
        share = _unit(weight) if total is None else weight / total
        # A padding client's message may be NaN, and 0 * NaN would spread.
        return jax.tree.map(
            lambda t, u: t + share * jnp.where(weight > 0, u, 0), sum_, update
        ), None

    items = (record.messages, record.cohort.client_ids, record.weights)
    first = jax.tree.map(lambda leaf: leaf[0], items)
    shapes = jax.eval_shape(strategy.decode, first[0], first[1], state, run_key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, items)[0]
