"""One federated round as one pure function: the only loop over clients in the project.

    sample the cohort -> clients, in chunks of ``clients_per_vmap`` -> mean -> server optimizer
                         (each device of the mesh its share)           (optax, on every device)

A strategy says what a client sends and what a message means (``ClientStrategy``), a group who does
so; an aggregation says what becomes of the mean (or sum) over all groups. There are two ways home
for messages. Dense ones (FedAvg's deltas) are decoded and summed where they arise, and one ``psum``
of a model adds the devices' sums. Scalar ones (``replays``) are gathered whole, a few floats a
client, and every device rebuilds the same update from them and the keys: no model ever crosses
between devices, just as none crosses between clients and server. That second half alone is
``FederatedAlgorithm.apply``: what a late joiner or an auditor runs on a stored ``RoundRecord``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from zo_fl.core import cohorts, keys, trees
from zo_fl.core.engine import AXIS, Engine
from zo_fl.core.phase import Phase
from zo_fl.core.strategy import ClientStrategy, FederatedAlgorithm, Group, RoundRecord
from zo_fl.core.types import Array, ClientResult, Cohort, FederatedData, PyTree, ServerState


class _Sums(NamedTuple):
    """Sums over clients, each client times its weight (``update``: times 1 for a plain sum)."""

    update: PyTree
    model_state: PyTree
    metrics: dict[str, Array]
    weight: Array


def make_algorithm(phase: Phase, engine: Engine) -> FederatedAlgorithm:
    """Returns a phase as pure functions, its clients laid out on the hardware by ``engine``."""
    groups, aggregation, optimizer = phase.groups, phase.aggregation, phase.server_optimizer

    def step(state: ServerState, reduced, run_key) -> ServerState:
        opt_state = state.opt_state
        if aggregation.assign is not None:
            params, strategy_state = aggregation.assign(reduced, state, run_key)
        else:
            assert optimizer is not None, f"phase {phase.name} descends without an optimizer"
            gradient, strategy_state = aggregation.finalize(reduced, state, run_key)
            updates, opt_state = optimizer.update(gradient, opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        return ServerState(
            params, state.model_state, opt_state, strategy_state, state.round_idx + 1
        )

    def apply(state: ServerState, records: Sequence[RoundRecord], run_key) -> ServerState:
        nothing = [None] * len(records)
        return step(state, _reduce(phase, records, nothing, state, run_key), run_key)

    def round_(state: ServerState, data: FederatedData, run_key):
        round_key = keys.round_key(run_key, state.round_idx)
        examples = data.client_indices.shape[1]
        cohorts, outcomes = [], []
        for group in groups:
            drawn = group.sample_cohort(round_key)
            cohort, size = engine.lay_out(group.strategy, drawn, examples)
            cohorts.append(cohort)
            outcomes.append(_run_cohort(phase, group, engine, size, state, data, cohort, run_key))
        sums = [outcome for outcome, _, _, _ in outcomes]
        records = tuple(
            RoundRecord(cohort, messages, weights)
            for cohort, (_, messages, weights, _) in zip(cohorts, outcomes, strict=True)
        )
        new = step(state, _reduce(phase, records, sums, state, run_key), run_key)
        # No weight at all (every client dropped out) leaves NaN in the metrics, which stops the
        # run.
        metrics = _mean([s.metrics for s in sums], [s.weight for s in sums])
        metrics |= {"update_norm": optax.tree.norm(optax.tree.sub(new.params, state.params))}
        metrics |= _faults(cohorts, [bad for _, _, _, bad in outcomes], records)
        uploads = [s for s in sums if jax.tree.leaves(s.model_state)]
        uploaded = _mean([s.model_state for s in uploads], [s.weight for s in uploads])
        model_state = aggregation.finalize_state(state.model_state, uploaded)
        return new._replace(model_state=model_state), metrics, records

    return FederatedAlgorithm(phase.init, round_, apply)


def _add(*summands: PyTree) -> PyTree:
    return jax.tree.map(lambda first, *others: sum(others, first), *summands)


def _mean(sums: Sequence[PyTree], weights: Sequence[Array]) -> PyTree:
    """Returns the sum of some trees over the sum of their weights; ``{}`` of no trees."""
    if not sums:
        return {}
    return trees.scale_down(_add(*sums), _add(*weights))


def _reduce(phase: Phase, records, sums, state: ServerState, run_key) -> PyTree:
    """Returns the weighted mean of all clients' updates, or their sum, as the aggregation asks.

    Where a group replays, from its messages alone: the server and a late joiner do the same sums,
    bit for bit.
    """
    weights = [
        jnp.sum(record.weights) if group.strategy.replays else part.weight
        for group, record, part in zip(phase.groups, records, sums, strict=True)
    ]
    total = None
    if phase.aggregation.reduce == "mean":
        total = jnp.maximum(_add(*weights), 1e-12)

    def reduced(group: Group, record: RoundRecord, part) -> PyTree:
        if group.strategy.replays:
            return _decode_record(group.strategy, record, state, run_key, total)
        return part.update if total is None else trees.scale_down(part.update, total)

    parts = map(reduced, phase.groups, records, sums)
    return _add(*parts)


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


def _faults(
    cohorts: Sequence[Cohort], bad: Sequence[Array], records: Sequence[RoundRecord]
) -> dict[str, Array]:
    """Returns metrics of what is wrong with a round's messages; see ``host.divergence``.

    Args:
      cohorts: of the groups.
      bad: of each, ``bool[C]``: who sent what is not finite.
      records: what was sent, where messages are scalars.
    """
    ids = jnp.concatenate([cohort.client_ids for cohort in cohorts])
    flags = jnp.concatenate(bad)
    scalars = [
        jnp.any((leaf != 0).reshape(len(leaf), -1), axis=1) & (record.weights > 0)
        for record in records
        for leaf in jax.tree.leaves(record.messages)
        if jnp.issubdtype(leaf.dtype, jnp.floating)  # whole numbers may well be zero
    ]
    all_zero = ~jnp.any(jnp.concatenate(scalars)) if scalars else jnp.bool(False)
    found = {
        "bad_clients": jnp.sum(flags),
        "first_bad_client": jnp.min(jnp.where(flags, ids, jnp.iinfo(ids.dtype).max)),
        "all_zero": all_zero,
    }
    return {name: value.astype(jnp.float32) for name, value in found.items()}


def _is_finite(result: ClientResult) -> Array:
    """Returns whether all numbers of a message, and what was measured beside, are finite."""
    leaves = jax.tree.leaves((result.message, result.metrics))
    # Zero times what is finite is zero: a sum takes a quarter of the time of a conjunction.
    return jnp.isfinite(jnp.sum(jnp.stack([jnp.sum(0.0 * leaf) for leaf in leaves])))


def _unit(weights: Array) -> Array:
    """Returns 1 for every client that takes part, 0 for padding and drop-outs."""
    return (weights > 0).astype(weights.dtype)


def _run_cohort(
    phase: Phase, group: Group, engine: Engine, chunk_size: int, state, data, cohort, run_key
):
    """Runs every client once.

    Returns:
      Summed results; the messages and their weights if the strategy replays; who of the cohort sent
      what is not finite.
    """
    share = _unit if phase.aggregation.reduce == "sum" else lambda weights: weights

    def on_device(state, data, cohort, run_key):
        run = _scan_chunks(group.strategy, share, chunk_size, engine.unroll, state, data, run_key)
        sums, *sent = run(cohort)
        sums = jax.lax.psum(sums, AXIS)
        gather = lambda leaf: jax.lax.all_gather(leaf, AXIS, tiled=True)  # noqa: E731
        return sums, *jax.tree.map(gather, sent)

    mapped = jax.shard_map(
        on_device,
        mesh=engine.mesh,
        in_specs=(P(), engine.data_spec, P(AXIS), P()),
        out_specs=P(),
        # The outputs are equal on all devices by the collectives above; the checker does not know
        # all_gather to be replicating.
        check_vma=False,
    )
    return mapped(state._replace(opt_state=()), data, cohort, run_key)


def _scan_chunks(
    strategy: ClientStrategy, share, chunk_size: int, unroll: int, state, data, run_key
):
    """Returns ``cohort -> (sums, messages, weights, bad)`` that accumulates over chunks of clients.

    Accumulating keeps memory flat in the number of clients; stacking updates would not.
    """

    def one_client(batch):
        result = strategy.client_update(state, batch, run_key)
        if strategy.replays:
            return result, (), _is_finite(result)
        update = strategy.decode(result.message, batch.client_id, state, run_key)
        return result, update, _is_finite(result)

    def run_chunk(chunk: Cohort):
        batch = cohorts.gather(data, chunk.client_ids)
        batch = batch._replace(mask=batch.mask & chunk.valid[:, None])
        if chunk_size == 1:  # vmap would turn every convolution into a grouped one, group count 1
            result, update, is_finite = trees.expand(one_client(trees.squeeze(batch)))
        else:
            result, update, is_finite = jax.vmap(one_client)(batch)
        weights = jnp.where(chunk.valid, result.weight, 0.0)
        sums = _Sums(
            trees.weighted_sum(update, share(weights)),
            *trees.weighted_sum((result.model_state, result.metrics), weights),
            weight=jnp.sum(weights),
        )
        sent = (result.message, weights) if strategy.replays else ((), ())
        return sums, (*sent, ~is_finite & (weights > 0))

    def run(cohort: Cohort):
        chunks = jax.tree.map(lambda leaf: leaf.reshape(-1, chunk_size, *leaf.shape[1:]), cohort)
        shapes, _ = jax.eval_shape(run_chunk, jax.tree.map(lambda leaf: leaf[0], chunks))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def body(sums, chunk):
            new, sent = run_chunk(chunk)
            return jax.tree.map(jnp.add, sums, new), sent

        sums, sent = jax.lax.scan(body, zeros, chunks, unroll=unroll)
        return sums, *jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), sent)

    return run
