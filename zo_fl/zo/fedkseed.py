"""FedKSeed: all directions come from a pool of K candidates, so the model *is* K scalars.

    pool: K keys, fixed for the run;  client, each local step: draw S candidates, probe, step
    uplink: the scalars (which candidates they belong to follows from the keys)
    G[k] = sum over rounds, clients, steps of p_i g / S,    w = w_0 - lr sum_k G[k] z_k

A local trajectory is linear in the z_k as long as the step size is constant and nothing decays, so
the server's rebuilt model is the weighted mean of the clients' local models. A client that comes
late needs w_0 and the K accumulators, whatever the number of rounds. The server itself applies
each round's change, over the candidates that were touched.

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

from zo_fl.engine import keys, statistics
from zo_fl.engine.algorithm import (
    Client,
    ClientBatch,
    ClientResult,
    Phase,
    Problem,
    Server,
    ServerState,
)
from zo_fl.engine.fields import Block, Field
from zo_fl.engine.keys import Keys
from zo_fl.engine.server import descend
from zo_fl.engine.types import Array
from zo_fl.zo import client, estimators, methods
from zo_fl.zo.client import Probing

CLIP = 1000.0

BLOCKS: dict[str, Block] = {
    "fedkseed": {
        # Its source has batches of 1, for language models.
        **methods.own_fields(
            num_rounds=500, eps=5e-4, num_directions=1, local_steps=200, batch_size=16, lr=4e-6
        ),
        "candidate_seeds": Field(4096, "size K of the pool", at_least=1, at_most=10**8),
    }
}
FIXED = {"distribution": "gaussian", "tau": 1.0}


class Pool(NamedTuple):
    """The server's knowledge of the K candidates.

    Attributes:
      accumulators: ``f32[K]``, G: the model is ``w_0 - lr sum_k G[k] z_k``.
      magnitudes: ``f32[K]`` sum of |scalar / step| seen, clipped; ``()`` unless it is used (Pro).
      counts: ``f32[K]`` how many were seen, and one; ``()`` unless it is used.
    """

    accumulators: Array
    magnitudes: Any
    counts: Any


def phases(
    problem: Problem, *, zo: Mapping[str, Any], fedkseed: Mapping[str, Any]
) -> tuple[Phase, ...]:
    """Returns the one phase of FedKSeed."""
    return (phase(problem, "fedkseed", {**zo, **fedkseed, **FIXED}, adaptive=False),)


def phases_pro(
    problem: Problem, *, zo: Mapping[str, Any], fedkseed: Mapping[str, Any]
) -> tuple[Phase, ...]:
    """Returns the one phase of FedKSeed-Pro."""
    return (phase(problem, "fedkseed_pro", {**zo, **fedkseed, **FIXED}, adaptive=True),)


def phase(problem: Problem, name: str, block: Mapping[str, Any], *, adaptive: bool) -> Phase:
    """Returns a phase of FedKSeed; ``adaptive`` if candidates are drawn by their history (Pro).

    Raises:
      FieldError: a cohort that cannot be drawn.
    """
    candidates = block["candidate_seeds"]
    probing = client.make_probing(problem, block, block["lr"])
    sending = pool_client(probing, candidates, adaptive)
    group = client.make_group(problem, probing, sending, block)
    server = pool_server(probing, candidates, adaptive, group.cohort_size)
    return Phase(name, block["num_rounds"], (group,), server)


def pool_client(probing: Probing, candidate_seeds: int, adaptive: bool) -> Client:
    """Returns the client whose message is ``f32[k, S]`` scalars of candidates from the pool."""
    num_directions = probing.num_directions

    def draw(state: ServerState, own: Keys, step: Array) -> Array:
        key = jax.random.fold_in(keys.stream(own.client, "candidates"), step)
        if not adaptive:
            return jax.random.randint(key, (num_directions,), 0, candidate_seeds)
        logits = log_probabilities(state.strategy_state)
        return jax.random.categorical(key, logits, shape=(num_directions,))

    def update(state: ServerState, batch: ClientBatch, own: Keys) -> ClientResult:
        def keys_of_step(step):
            return pool_keys(own.run, draw(state, own, step))

        return client.probe(probing, state, batch, own, keys_of_step)[0]

    def decode(message, state: ServerState, own: Keys) -> Pool:
        steps = jnp.arange(probing.local_steps)
        drawn = jax.vmap(lambda step: draw(state, own, step))(steps).reshape(-1)
        coefficients = jax.vmap(probing.estimator.coefficients)(message).reshape(-1)
        zeros = jnp.zeros(candidate_seeds)
        accumulators = zeros.at[drawn].add(coefficients)
        if not adaptive:
            return Pool(accumulators, (), ())
        sizes = jnp.minimum(jnp.abs(coefficients) * num_directions, CLIP)
        return Pool(accumulators, zeros.at[drawn].add(sizes), zeros.at[drawn].add(1.0))

    return Client(update, decode, replays=True, read_alone=True)


def pool_server(probing: Probing, candidate_seeds: int, adaptive: bool, cohort_size: int) -> Server:
    """Returns the server: it adds to the accumulators and applies what they gained."""
    drawn = cohort_size * probing.local_steps * probing.num_directions
    touched = min(drawn, candidate_seeds)  # candidates a round, at most

    def init(params, before) -> Pool:
        zeros, ones = jnp.zeros(candidate_seeds), jnp.ones(candidate_seeds)
        # Arrays of their own: a state is donated to the next round, each of its buffers once.
        return Pool(zeros, jnp.copy(zeros), ones) if adaptive else Pool(zeros, (), ())

    def gradient(mean: Pool, state: ServerState, of_round: Keys):
        (indices,) = jnp.nonzero(mean.accumulators, size=touched, fill_value=0)
        # Those past the last touched one are filled with candidate 0, at no weight.
        real = jnp.arange(touched) < jnp.sum(mean.accumulators != 0)
        coefficients = jnp.where(real, mean.accumulators[indices], 0.0)
        candidates = pool_keys(of_round.run, indices)
        zeros = optax.tree.zeros_like(state.params)
        found = estimators.combine(probing.add_direction, coefficients, candidates, zeros)
        # Means over the cohort; the history is a sum over its clients.
        history = jax.tree.map(lambda leaf: cohort_size * leaf, tuple(mean[1:]))
        gains = Pool(mean.accumulators, *history)
        return found, jax.tree.map(jnp.add, state.strategy_state, gains)

    optimizer = optax.sgd(probing.local_lr)  # that of clients: see above
    of_server = statistics.of_server(probing.bn_policy)
    return descend(optimizer, gradient, init=init, statistics=of_server)


def pool_keys(run_key: Array, indices: Array) -> Array:
    """Returns the keys ``key[...]`` of candidates ``i32[...]`` of the run's pool."""
    pool = keys.stream(run_key, "candidate_seeds")
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(pool, indices)


def log_probabilities(pool: Pool) -> Array:
    """Returns ``f32[K]``, the logarithm of Pro's probabilities up to a constant."""
    mean = pool.magnitudes / pool.counts
    low, high = jnp.min(mean), jnp.max(mean)
    return jnp.where(high > low, (mean - low) / jnp.maximum(high - low, 1e-30), 0.0)
