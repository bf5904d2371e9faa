"""FedKSeed: all directions come from a pool of K candidates, so the model *is* K scalars.

    pool: K keys, fixed for the run;  client, each local step: draw S candidates, probe, step
    uplink: the scalars (which candidates they belong to follows from the keys)
    G[k] = sum over rounds, clients, steps of p_i g / S,    w = w_0 - lr sum_k G[k] z_k

A local trajectory is linear in the z_k as long as the step size is constant and nothing decays, so
the server's rebuilt model is the weighted mean of the clients' local models. A client that comes
late needs w_0 and the K accumulators, whatever the number of rounds: ``from_start``. The server
itself applies each round's change, over the candidates that were touched.

FedKSeed-Pro draws candidates with probabilities p = softmax(minmax(a)), a[k] the mean size of the
scalars seen for candidate k (clipped at 1000; each history starts with a zero).

Differs from the source: S candidates a step, where it has one (S = 1); candidates are drawn from a
key that the server knows, so their indices do not travel. Pro's history counts clients with their
weights in the mean, which are equal if clients are.

Source: Qin et al., "Federated Full-Parameter Tuning of Billion-Sized Language Models with
Communication Cost under 18 Kilobytes", ICML 2024 (arXiv 2312.06353).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zo_fl.engine import keys
from zo_fl.engine import statistics as batch_statistics
from zo_fl.engine.fields import Block, Field, changed, take, without
from zo_fl.engine.phase import Participation, Phase, Problem, cohort_size, make_group
from zo_fl.engine.strategy import Aggregation, ClientStrategy
from zo_fl.engine.types import Array, ClientBatch, ClientResult, Params, ServerState
from zo_fl.zo import estimators, precision_check, private_scalars, zeroth_order
from zo_fl.zo import methods as zo
from zo_fl.zo.probing import Prober, Probing, make_prober

CLIP = 1000.0


FIXED = ("seed_policy", "aggregation", "local_lr", "server")
BLOCKS: dict[str, Block] = {
    "fedkseed": {
        **changed(
            without(zo.FIELDS, *FIXED),
            num_rounds=500,
            distribution="gaussian",
            eps=5e-4,
            tau=1.0,
            num_directions=1,
            local_steps=200,
            batch_size=16,
            lr=4e-6,
        ),
        # Its source has batches of 1, for language models.
        "candidate_seeds": Field(4096, "K, the pool", at_least=1, at_most=10**8),
    }
}


class Pool(NamedTuple):
    """What is known of the K candidates.

    Attributes:
      accumulators: ``f32[K]``, G: the model is ``w_0 - lr sum_k G[k] z_k``.
      magnitudes: ``f32[K]`` sum of |scalar / step| seen, clipped; ``()`` unless it is used (Pro).
      counts: ``f32[K]`` how many were seen, and one; ``()`` unless it is used.
    """

    accumulators: Array
    magnitudes: Any
    counts: Any


def phases(problem: Problem, *, fedkseed: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Returns the one phase of FedKSeed; ``fedkseed`` is its config block."""
    return (phase(problem, "fedkseed", fedkseed, adaptive=False),)


def phases_pro(problem: Problem, *, fedkseed: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Returns the one phase of FedKSeed-Pro."""
    return (phase(problem, "fedkseed_pro", fedkseed, adaptive=True),)


def phase(problem: Problem, name: str, block: Mapping[str, Any], *, adaptive: bool) -> Phase:
    """Returns the phase.

    Args:
      problem: task and clients.
      name: the phase's.
      block: the fields of ``config.fedkseed``.
      adaptive: draw candidates by their history (Pro) instead of uniformly.

    Raises:
      ConfigError: a cohort that cannot be drawn.
    """
    who, lr, candidates = take(Participation, block), block["lr"], block["candidate_seeds"]
    prober = make_prober(problem.task, take(Probing, block), lr)
    size = cohort_size(problem, who)
    drawn = size * prober.fields.local_steps * prober.fields.num_directions
    group = make_group(
        problem,
        pool_strategy(prober, candidates, adaptive, uniform=block["weights"] == "uniform"),
        prober.forward_passes,
        who,
    )
    aggregation = pool_aggregation(prober, candidates, adaptive, size, drawn)
    revealed = private_scalars.release(prober.fields, problem)
    return Phase(name, block["num_rounds"], (group,), aggregation, optax.sgd(lr), release=revealed)


def pool_strategy(
    prober: Prober, candidate_seeds: int, adaptive: bool, *, uniform: bool
) -> ClientStrategy:
    """Returns the strategy whose message is ``f32[k, S]`` scalars of candidates from the pool."""

    def draw(state: ServerState, run_key, client_id, step):
        root = keys.client_key(keys.round_key(run_key, state.round_idx), client_id)
        key = jax.random.fold_in(keys.stream(root, "candidates"), step)
        if not adaptive:
            return jax.random.randint(key, (prober.fields.num_directions,), 0, candidate_seeds)
        logits = log_probabilities(state.strategy_state)
        return jax.random.categorical(key, logits, shape=(prober.fields.num_directions,))

    def client_update(state: ServerState, batch: ClientBatch, run_key):
        def draw_keys(step):
            return pool_keys(run_key, draw(state, run_key, batch.client_id, step))

        probes = zeroth_order.probe(prober, state, batch, run_key, draw_keys)
        weight = (probes.size > 0).astype(jnp.float32) if uniform else probes.size
        return ClientResult(probes.scalars, weight, probes.statistics, {"loss": probes.loss})

    def decode(message, client_id, state: ServerState, run_key):
        steps = jnp.arange(prober.fields.local_steps)
        drawn = jax.vmap(lambda step: draw(state, run_key, client_id, step))(steps).reshape(-1)
        coefficients = jax.vmap(prober.estimator.coefficients)(message).reshape(-1)
        zeros = jnp.zeros(candidate_seeds)
        accumulators = zeros.at[drawn].add(coefficients)
        if not adaptive:
            return Pool(accumulators, (), ())
        sizes = jnp.minimum(jnp.abs(coefficients) * prober.fields.num_directions, CLIP)
        return Pool(accumulators, zeros.at[drawn].add(sizes), zeros.at[drawn].add(1.0))

    twice = precision_check.scalars_twice(prober)
    return ClientStrategy(client_update, decode, replays=True, scalars_twice=twice)


def pool_aggregation(
    prober: Prober, candidate_seeds: int, adaptive: bool, cohort_size: int, drawn: int
) -> Aggregation:
    """Returns the server's side: adds to the accumulators and applies what they gained.

    Args:
      prober: how losses are probed.
      candidate_seeds: K.
      adaptive: keep the history that Pro draws by.
      cohort_size: clients a round.
      drawn: candidates that a round touches at most.
    """
    touched = min(drawn, candidate_seeds)

    def init(params):
        del params
        zeros, ones = jnp.zeros(candidate_seeds), jnp.ones(candidate_seeds)
        # Arrays of their own: a state is donated to the next round, each of its buffers once.
        return Pool(zeros, jnp.copy(zeros), ones) if adaptive else Pool(zeros, (), ())

    def finalize(mean: Pool, state: ServerState, run_key):
        (indices,) = jnp.nonzero(mean.accumulators, size=touched, fill_value=0)
        # Those past the last touched one are filled with candidate 0, at no weight.
        real = jnp.arange(touched) < jnp.sum(mean.accumulators != 0)
        coefficients = jnp.where(real, mean.accumulators[indices], 0.0)
        zeros = optax.tree.zeros_like(state.params)
        gradient = estimators.combine(
            prober.add_direction, coefficients, pool_keys(run_key, indices), zeros
        )
        # Means over the cohort; the history is a sum over its clients.
        gains = Pool(
            mean.accumulators, *jax.tree.map(lambda leaf: cohort_size * leaf, tuple(mean[1:]))
        )
        return gradient, jax.tree.map(jnp.add, state.strategy_state, gains)

    finalize_state = batch_statistics.finalize_state(prober.fields.bn_policy)
    return Aggregation(init, finalize=finalize, finalize_state=finalize_state)


def from_start(
    add_direction, params: Params, pool: Pool, run_key: Array, lr: float | Array
) -> Params:
    """Returns the model after any number of rounds, from the first one and the accumulators.

    Args:
      add_direction: from ``clients.directions``.
      params: w_0, at the start of the phase.
      pool: ``ServerState.strategy_state``.
      run_key: ``key[]``.
      lr: the phase's.
    """
    candidates = jnp.arange(pool.accumulators.shape[0])
    return estimators.combine(
        add_direction, -lr * pool.accumulators, pool_keys(run_key, candidates), params
    )


def pool_keys(run_key: Array, indices: Array) -> Array:
    """Returns the keys ``key[...]`` of candidates ``i32[...]`` of the run's pool."""
    pool = keys.stream(run_key, "candidate_seeds")
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(pool, indices)


def log_probabilities(pool: Pool) -> Array:
    """Returns ``f32[K]``, the logarithm of Pro's probabilities up to a constant."""
    mean = pool.magnitudes / pool.counts
    low, high = jnp.min(mean), jnp.max(mean)
    return jnp.where(high > low, (mean - low) / jnp.maximum(high - low, 1e-30), 0.0)
