"""One federated round as one pure function: the only loop over clients in the project.

    sample the cohort -> clients, in chunks of ``clients_per_vmap`` -> mean -> server optimizer
                         (each device of the mesh its share)           (optax, on every device)

A strategy says what a client sends and what a message means (``types.ClientStrategy``). There are
two ways home for messages. Dense ones (FedAvg's deltas) are decoded and summed where they arise,
and one ``psum`` of a model adds the devices' sums. Scalar ones (``replays``) are gathered whole, a
few floats a client, and every device rebuilds the same update from them and the keys: no model ever
crosses between devices, just as none crosses between clients and server. That second half alone is
``FederatedAlgorithm.apply``: what a late joiner or an auditor runs on a stored ``RoundRecord``.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from zo_fl import keys, trees
from zo_fl.data import federated
from zo_fl.types import (
    Array,
    ClientStrategy,
    Cohort,
    FederatedAlgorithm,
    FederatedData,
    PyTree,
    RoundRecord,
    ServerState,
)

AXIS = "clients"


class Engine(NamedTuple):
    """How clients are laid out on the hardware; changes speed and memory, never the result.

    Attributes:
      mesh: devices along the one axis ``"clients"``.
      clients_per_vmap: clients evaluated at once on a device.
    """

    mesh: Mesh
    clients_per_vmap: int

    @property
    def multiple(self) -> int:
        """The cohort is padded to a multiple of this."""
        return self.mesh.size * self.clients_per_vmap


class _Sums(NamedTuple):
    update: PyTree
    model_state: PyTree
    metrics: dict[str, Array]
    weight: Array


def make_algorithm(
    strategy: ClientStrategy,
    server_optimizer: optax.GradientTransformation,
    sample_cohort: Callable[[Array], Cohort],
    engine: Engine,
) -> FederatedAlgorithm:
    """Returns the federated algorithm of a strategy, a server optimizer and a way to sample
    cohorts.

    Args:
      strategy: what clients compute and send.
      server_optimizer: descends along the pseudo-gradient (delta = before - after).
      sample_cohort: ``round_key -> Cohort`` with a multiple of ``engine.multiple`` entries.
      engine: how clients are laid out on the hardware.
    """

    def init(params, model_state, round_idx=0):
        opt_state = server_optimizer.init(params)
        return ServerState(params, model_state, opt_state, jnp.int32(round_idx))

    def step(state: ServerState, mean_update, round_key):
        gradient = strategy.finalize(mean_update, round_key, state.params)
        updates, opt_state = server_optimizer.update(gradient, state.opt_state, state.params)
        return optax.apply_updates(state.params, updates), opt_state

    def apply(state: ServerState, record: RoundRecord, run_key):
        round_key = keys.round_key(run_key, state.round_idx)
        return step(state, _decode_record(strategy, record, round_key, state.params), round_key)

    def round_(state: ServerState, data: FederatedData, run_key):
        round_key = keys.round_key(run_key, state.round_idx)
        cohort = sample_cohort(round_key)
        sums, messages, weights = _run_cohort(strategy, engine, state, data, cohort, round_key)
        # No weight at all (every client dropped out) leaves NaN in the metrics, which stops the
        # run.
        mean = jax.tree.map(lambda leaf: leaf / sums.weight, sums)
        record = RoundRecord(cohort, messages, weights)
        if strategy.replays:
            params, opt_state = apply(state, record, run_key)
        else:
            params, opt_state = step(state, mean.update, round_key)
        metrics = mean.metrics | {
            "update_norm": optax.tree.norm(optax.tree.sub(params, state.params))
        }
        model_state = strategy.finalize_state(state.model_state, mean.model_state)
        return ServerState(params, model_state, opt_state, state.round_idx + 1), metrics, record

    return FederatedAlgorithm(init, round_, apply)


def _decode_record(strategy, record: RoundRecord, round_key, params) -> PyTree:
    """Returns the weighted mean of the decoded messages of a round, in the cohort's order."""
    total_weight = jnp.maximum(jnp.sum(record.weights), 1e-12)

    def add(total, item):
        message, client_id, weight = item
        update = strategy.decode(message, client_id, round_key, params)
        share = weight / total_weight
        # A padding client's message may be NaN, and 0 * NaN would spread.
        return jax.tree.map(
            lambda t, u: t + share * jnp.where(weight > 0, u, 0), total, update
        ), None

    items = (record.messages, record.cohort.client_ids, record.weights)
    first = jax.tree.map(lambda leaf: leaf[0], items)
    shapes = jax.eval_shape(strategy.decode, first[0], first[1], round_key, params)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, items)[0]


def _run_cohort(strategy, engine: Engine, state: ServerState, data, cohort, round_key):
    """Runs every client once; returns summed results, and the messages if the strategy replays."""

    def on_device(params, model_state, data, cohort, round_key):
        run = _scan_chunks(strategy, engine.clients_per_vmap, params, model_state, data, round_key)
        sums, messages, weights = run(cohort)
        sums = jax.lax.psum(sums, AXIS)
        gather = lambda leaf: jax.lax.all_gather(leaf, AXIS, tiled=True)  # noqa: E731
        return sums, jax.tree.map(gather, messages), jax.tree.map(gather, weights)

    mapped = jax.shard_map(
        on_device,
        mesh=engine.mesh,
        in_specs=(P(), P(), P(), P(AXIS), P()),
        out_specs=P(),
        # The outputs are equal on all devices by the collectives above; the checker does not know
        # all_gather to be replicating.
        check_vma=False,
    )
    return mapped(state.params, state.model_state, data, cohort, round_key)


def _scan_chunks(strategy: ClientStrategy, chunk_size, params, model_state, data, round_key):
    """Returns ``cohort -> (sums, messages, weights)`` that accumulates over chunks of clients.

    Accumulating keeps memory flat in the number of clients; stacking updates would not.
    """

    def one_client(batch):
        result = strategy.client_update(params, model_state, batch, round_key)
        if strategy.replays:
            return result, ()
        return result, strategy.decode(result.message, batch.client_id, round_key, params)

    def run_chunk(chunk: Cohort):
        batch = federated.gather(data, chunk.client_ids)
        batch = batch._replace(mask=batch.mask & chunk.valid[:, None])
        if chunk_size == 1:  # vmap would turn every convolution into a grouped one, group count 1
            result, update = trees.expand(one_client(trees.squeeze(batch)))
        else:
            result, update = jax.vmap(one_client)(batch)
        weights = jnp.where(chunk.valid, result.weight, 0.0)
        sums = _Sums(
            *trees.weighted_sum((update, result.model_state, result.metrics), weights),
            weight=jnp.sum(weights),
        )
        sent = (result.message, weights) if strategy.replays else ((), ())
        return sums, sent

    def run(cohort: Cohort):
        chunks = jax.tree.map(lambda leaf: leaf.reshape(-1, chunk_size, *leaf.shape[1:]), cohort)
        shapes, _ = jax.eval_shape(run_chunk, jax.tree.map(lambda leaf: leaf[0], chunks))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def body(sums, chunk):
            new, sent = run_chunk(chunk)
            return jax.tree.map(jnp.add, sums, new), sent

        sums, sent = jax.lax.scan(body, zeros, chunks)
        messages, weights = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), sent)
        return sums, messages, weights

    return run
