"""The zeroth-order round: clients send S loss differences, everyone rebuilds the same update.

    scalar_{j,m} = F_j(w + eps z_{j,m}) - F_j(w - eps z_{j,m}),    z_{j,m} = z(round, client j, m)
    g = sum_j (n_j / sum n) 1/S sum_m scalar_{j,m} / (2 eps) z_{j,m},    w <- ServerOptimizer(w, g)

F_j is the mean cross-entropy over *all* of the client's training examples; one step a round. Phase
two of ZOWarmUp is this with all clients; alone it is zeroth-order training from scratch. With
``local_steps = k`` (Table 3) a client's examples are shuffled and split into k chunks of equal
size; it takes a step of its own after each, and g sums the k gradients of each client. (A client
with fewer examples than others has fewer, or emptier, chunks.)

Source: ZOWarmUp, Algorithm 1, phase 2, with the printed errors mended: the update is subtracted,
all clients update, and terms are averaged (``aggregation = "sum"`` gives the printed sum, whose
step size is S * |cohort| times smaller for the same update).
"""

from typing import Any

import jax
import jax.numpy as jnp

from zo_fl import keys, server_optimizers, trees, zo_client
from zo_fl.phase import Phase, Problem, eligible_clients, make_group, make_phase
from zo_fl.types import (
    Aggregation,
    Array,
    ClientBatch,
    ClientResult,
    ClientStrategy,
    Group,
    Params,
    ServerState,
)
from zo_fl.zo import estimators
from zo_fl.zo_client import Prober, check_name

SEED_POLICIES = ("per_client", "shared")
AGGREGATIONS = ("mean", "sum")
WEIGHTS = ("examples", "uniform")


def phases(problem: Problem, *, zo: dict) -> tuple[Phase, ...]:
    """Returns the one phase of zeroth-order training; ``zo`` is the config block of ``phase``."""
    return (phase(problem, **zo),)


def phase(
    problem: Problem, *, block: str = "zo", num_rounds: int, server: dict, **clients: Any
) -> Phase:
    """Returns a phase of zeroth-order rounds.

    Args:
      problem: task and clients.
      block: the config block, for error messages and as the phase's name.
      num_rounds: rounds.
      server: server optimizer, see ``server_optimizers.create``.
      **clients: the other fields of the block, see ``zeroth_order_clients``.

    Raises:
      ConfigError: an unknown name or a number out of range.
    """
    optimizer = server_optimizers.create(lr=clients["lr"], **server)
    group, aggregation, _ = zeroth_order_clients(problem, block=block, **clients)
    return make_phase(problem, block, num_rounds, (group,), optimizer, aggregation)


def zeroth_order_clients(
    problem: Problem,
    *,
    block: str,
    cohort_size: int,
    tiers: str,
    participation: str,
    weights: str,
    seed_policy: str,
    aggregation: str,
    lr: float,
    local_lr: float,
    **probing: Any,
) -> tuple[Group, Aggregation, float]:
    """Returns the clients of a zeroth-order round, the server's side, and the sum's scale.

    Args:
      problem: task and clients.
      block: the config block.
      cohort_size: see ``make_group``; likewise ``tiers`` and ``participation``.
      tiers: see above.
      participation: see above.
      weights: of clients in the mean: ``examples`` or ``uniform``; a sum is always uniform.
      seed_policy: ``per_client`` or ``shared``: all clients probe the same S directions of the
        round; the scalars are averaged and the update is rebuilt once.
      aggregation: ``mean``, or the printed algorithm's ``sum`` over clients and directions.
      lr: server step size.
      local_lr: step size between a client's own steps; 0 = ``lr``, scaled to the mean.
      **probing: see ``zo_client.make_prober``.
    """
    check_name(block, "seed_policy", seed_policy, SEED_POLICIES)
    check_name(block, "aggregation", aggregation, AGGREGATIONS)
    check_name(block, "weights", weights, WEIGHTS)
    size = cohort_size or len(eligible_clients(problem, block, tiers))
    scale = size * probing["num_directions"] if aggregation == "sum" else 1
    prober = zo_client.make_prober(
        problem.task, block=block, local_lr=local_lr or lr * scale, **probing
    )
    shared = seed_policy == "shared"
    uniform = weights == "uniform" or aggregation == "sum"
    group = make_group(
        problem,
        scalar_strategy(prober, shared=shared, uniform=uniform),
        lambda clients, examples: zo_client.forward_passes(prober, clients, examples),
        block=block,
        tiers=tiers,
        cohort_size=cohort_size,
        participation=participation,
    )
    return group, scalar_aggregation(prober, shared, scale), scale


def scalar_strategy(prober: Prober, *, shared: bool, uniform: bool) -> ClientStrategy:
    """Returns the strategy whose message is ``f32[k, S]`` scalars of k local steps.

    Args:
      prober: how losses are probed.
      shared: the server rebuilds from the mean of the messages, see ``scalar_aggregation``.
      uniform: clients count the same, whatever their number of examples.
    """

    def client_update(state: ServerState, batch: ClientBatch, run_key):
        root = directions_root(state, run_key, None if shared else batch.client_id)
        probes = zo_client.probe(
            prober, state, batch, run_key, lambda step: step_keys(prober, root, step)
        )
        weight = (probes.size > 0).astype(jnp.float32) if uniform else probes.size
        return ClientResult(probes.scalars, weight, probes.statistics, {"loss": probes.loss})

    def decode(message, client_id, state: ServerState, run_key):
        if shared:
            return message
        return rebuild(prober, message, directions_root(state, run_key, client_id), state.params)

    one_model = shared and prober.local_steps == 1
    return ClientStrategy(client_update, decode, replays=True, one_model=one_model)


def scalar_aggregation(prober: Prober, shared: bool, scale: float) -> Aggregation:
    """Returns the server's side of ``scalar_strategy``.

    Args:
      prober: how losses are probed.
      shared: the mean update is scalars, from which the gradient is rebuilt once.
      scale: factor on the mean gradient.
    """

    def finalize(mean_update, state: ServerState, run_key):
        if shared:
            mean_update = rebuild(
                prober, mean_update, directions_root(state, run_key, None), state.params
            )
        return trees.scale(mean_update, scale), state.strategy_state

    return Aggregation(finalize=finalize, finalize_state=zo_client.finalize_state(prober.bn_policy))


def step_keys(prober: Prober, root: Array, step: Array) -> Array:
    """Returns ``key[S]``: the directions of a local step, by one count over all steps."""
    first = step * prober.num_directions
    indices = first + jnp.arange(prober.num_directions)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(root, indices)


def rebuild(prober: Prober, scalars: Array, root: Array, like: Params) -> Params:
    """Returns the sum of the k gradient estimates of scalars ``f32[k, S]``, like ``like``."""
    steps = jnp.arange(scalars.shape[0])
    all_keys = jax.vmap(lambda step: step_keys(prober, root, step))(steps).reshape(-1)
    coefficients = jax.vmap(prober.estimator.coefficients)(scalars).reshape(-1)
    zeros = jax.tree.map(jnp.zeros_like, like)
    return estimators.combine(prober.add_direction, coefficients, all_keys, zeros)


def directions_root(state: ServerState, run_key: Array, client_id: Array | None) -> Array:
    """Returns the key of a client's directions in this round, or of all clients'."""
    round_key = keys.round_key(run_key, state.round_idx)
    root = round_key if client_id is None else keys.client_key(round_key, client_id)
    return keys.stream(root, "directions")
