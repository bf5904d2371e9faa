"""One federated round as one pure function: the only loop over clients in the project.

    sample the cohort -> clients, in chunks of ``clients_per_vmap`` -> mean -> server optimizer
                         (each device of the mesh its share)           (optax, on every device)

There are two ways home for messages. Dense ones (FedAvg's deltas) are decoded and summed where they
arise, and one ``psum`` of a model adds the devices' sums; they are stacked where the server's
reducer looks at all of them. Scalar ones (``replays``) are gathered whole, a few floats a client,
and every device rebuilds the same update from them and the keys: no model ever crosses between
devices, just as none crosses between clients and server.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from zo_fl.engine import cohorts, health, reduction, trees
from zo_fl.engine import keys as seeds
from zo_fl.engine.algorithm import Cohort, Group, Phase, Reducer, ServerState, start
from zo_fl.engine.keys import Keys
from zo_fl.engine.layout import AXIS, Engine, Loop
from zo_fl.engine.reduction import RoundRecord, Sums
from zo_fl.engine.types import Array, FederatedData


class FederatedAlgorithm(NamedTuple):
    """A phase as pure functions.

    Attributes:
      init: ``(params, model_state, round_idx=0, before=None) -> ServerState``, see ``start``.
      round: ``(state, data, run_key) -> (state, metrics, records)``: ``f32[]`` each, and one
        ``RoundRecord`` a group.
      apply: ``(state, records, run_key) -> state``, the server's half of a round where clients
        replay, for a late joiner or an auditor; running statistics stay.
    """

    init: Callable[..., ServerState]
    round: Callable[
        [ServerState, FederatedData, Array],
        tuple[ServerState, dict[str, Array], tuple[RoundRecord, ...]],
    ]
    apply: Callable[[ServerState, tuple[RoundRecord, ...], Array], ServerState]


def traced_once(group: Group) -> Group:
    """Returns the group, its client traced once for arguments of the same shapes.

    Bills, rounds and replays call the same functions; their programs are as without it.
    """
    client = group.client
    update, decode = (jax.jit(hook, inline=True) for hook in (client.update, client.decode))
    return group._replace(client=client._replace(update=update, decode=decode))


def make_algorithm(phase: Phase, engine: Engine) -> FederatedAlgorithm:
    """Returns a phase as pure functions, its clients laid out on the hardware by ``engine``."""
    phase = phase._replace(groups=tuple(map(traced_once, phase.groups)))
    groups, reducer = phase.groups, phase.server.reducer

    def step(state: ServerState, records: Sequence[RoundRecord], sums, keys: Keys) -> ServerState:
        reduced = reduction.reduce(phase, records, sums, state, keys)
        params, opt_state, strategy_state = phase.server.step(reduced, state, keys)
        if phase.server.note is not None:
            for cohort, _, weights in records:
                strategy_state = phase.server.note(strategy_state, cohort.client_ids, weights > 0)
        return ServerState(
            params, state.model_state, opt_state, strategy_state, state.round_idx + 1
        )

    def apply(state: ServerState, records: Sequence[RoundRecord], run_key) -> ServerState:
        new = step(state, records, [None] * len(records), seeds.of_round(run_key, state.round_idx))
        if reducer.tolerant:
            new = health.unless_empty([jnp.sum(record.weights) for record in records], new, state)
        return new

    def round_(state: ServerState, data: FederatedData, run_key):
        keys = seeds.of_round(run_key, state.round_idx)
        cohorts, outcomes = [], []
        for group in groups:
            drawn = group.sample_cohort(keys.round)
            cohort, loop = engine.lay_out(group, drawn, examples=data.client_indices.shape[1])
            cohorts.append(cohort)
            run = _spread(_client_loop(group, reducer, loop), engine)
            outcomes.append(run(state._replace(opt_state=()), data, cohort, run_key))
        sums, messages, sent_weights, bad = zip(*outcomes, strict=True)
        sent = tuple(map(RoundRecord, cohorts, messages, sent_weights))
        new = step(state, sent, sums, keys)
        uploads = [s for s in sums if jax.tree.leaves(s.model_state)]
        uploaded = reduction.mean([s.model_state for s in uploads], [s.weight for s in uploads])
        new = new._replace(model_state=phase.server.statistics(state.model_state, uploaded))
        weights = [s.weight for s in sums]
        if reducer.tolerant:
            new = health.unless_empty(weights, new, state)
        # No weight at all leaves NaN in the metrics: it stops the run, unless that is tolerated.
        metrics = reduction.mean([s.metrics for s in sums], weights)
        metrics |= {"update_norm": optax.tree.norm(optax.tree.sub(new.params, state.params))}
        records = tuple(
            record if group.client.replays else record._replace(messages=(), weights=())
            for group, record in zip(groups, sent, strict=True)
        )
        return new, metrics | health.metrics(reducer, cohorts, bad, records, weights), records

    return FederatedAlgorithm(functools.partial(start, phase), round_, apply)


def _spread(run: Callable, engine: Engine) -> Callable:
    """Returns ``run`` of ``_client_loop`` with the cohort spread over devices, results on all."""
    if engine.mesh.size == 1:
        return run

    def on_devices(*arguments):
        sums, *sent = run(*arguments)
        return jax.lax.psum(sums, AXIS), *jax.lax.all_gather(sent, AXIS, tiled=True)

    return jax.shard_map(
        on_devices,
        mesh=engine.mesh,
        in_specs=(P(), engine.data_spec, P(AXIS), P()),
        out_specs=P(),
        # The outputs are equal on all devices by the collectives above; the checker does not
        # know all_gather to be replicating.
        check_vma=False,
    )


def _client_loop(group: Group, reducer: Reducer, loop: Loop) -> Callable:
    """Returns a function that runs every client of a cohort once, in chunks.

    It accumulates: that keeps memory flat in the number of clients; stacking updates would not.

    Returns:
      ``(state, data, cohort, run_key) -> (sums, sent, weights, bad)``: summed results; messages if
      the clients replay, updates if the reducer looks at all of them, else ``()``; ``f32[C]``;
      ``bool[C]``, whose results are not finite.
    """
    client, stacks = group.client, reducer.looks_at_all and not group.client.replays

    def one_client(batch, state, keys: Keys):
        own = keys.of(batch.client_id)
        result = client.update(state, batch, own)
        update = () if client.replays else client.decode(result.message, state, own)
        return result, update, health.is_finite(result)

    def run_chunk(state, data, chunk: Cohort, run_key):
        batch = cohorts.gather(data, chunk.client_ids)
        batch = batch._replace(mask=batch.mask & chunk.valid[:, None])
        keys = seeds.of_round(run_key, state.round_idx)
        one = functools.partial(one_client, state=state, keys=keys)
        if loop.chunk_size == 1:  # vmap would make every convolution a grouped one of one group
            alone = one(trees.squeeze(batch))
            result, update, is_finite = jax.tree.map(lambda leaf: leaf[None], alone)
        else:
            result, update, is_finite = jax.vmap(one)(batch)
        counts = chunk.valid & is_finite if reducer.tolerant else chunk.valid
        weights = jnp.where(counts, result.weight, 0.0)
        sums = Sums(
            () if stacks else trees.weighted_sum(update, reduction.shares(reducer, weights)),
            *trees.weighted_sum((result.model_state, result.metrics), weights),
            weight=jnp.sum(weights),
        )
        sent = result.message if client.replays else update if stacks else ()
        answers = chunk.valid & (result.weight > 0)
        bad = ~is_finite & (chunk.valid if reducer.tolerant else answers)
        return sums, (sent, weights, bad)

    def run(state, data, cohort: Cohort, run_key):
        # Traced once, for its shapes and the scan; the program is the same as without jit.
        of_chunk = jax.jit(lambda chunk: run_chunk(state, data, chunk, run_key), inline=True)
        cut = lambda leaf: leaf.reshape(-1, loop.chunk_size, *leaf.shape[1:])  # noqa: E731
        chunks = jax.tree.map(cut, cohort)
        shapes = jax.eval_shape(of_chunk, jax.tree.map(lambda leaf: leaf[0], chunks))
        zeros, nothing = trees.zeros(shapes)

        def body(sums, chunk):
            def add(chunk):
                new, sent = of_chunk(chunk)
                return jax.tree.map(jnp.add, sums, new), sent

            if not loop.skips_padding:
                return add(chunk)
            return jax.lax.cond(jnp.any(chunk.valid), add, lambda _: (sums, nothing), chunk)

        sums, sent = jax.lax.scan(body, zeros, chunks)
        return sums, *jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), sent)

    return run
