"""BAFFLE: zeroth-order training from scratch by many forward differences of shared directions.

    z_m ~ N(0, I), m = 1..S (S = 100 to 500), the same for all clients
    client: F_j(w + sigma z_m) - F_j(w)          server: g = mean_m mean_j (...) / sigma z_m
    g <- g * min(1, clip / max|g|),   w <- Adam(w, g)
    evaluated: a <- r a + (1 - r) w after round t,  r = min(ema, (1 + t) / (10 + t))

The rate r of the average rises to ``ema``: at that rate from the start, nine tenths of what is
evaluated after 20 rounds would be the random start.

It predates ZOWarmUp as a method that starts from random weights. The clients' scalars enter only
through their mean, so secure aggregation of S floats is enough.

Differs from the source's code: only parameters are perturbed, never running statistics; directions
are shared, as in its paper; clients count by their examples; the mean over clients is clipped, not
each client's estimate; weight decay is decoupled; the average moves every round, not every epoch.

Source: Feng et al., "Does Federated Learning Really Need Backpropagation?" (arXiv 2301.12195).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zo_fl.engine import server_optimizers
from zo_fl.engine.fields import Block, Field, changed, take, without
from zo_fl.engine.phase import Phase, Problem
from zo_fl.engine.strategy import Aggregation
from zo_fl.engine.types import Array, Params, ServerState
from zo_fl.zo import methods as zo
from zo_fl.zo import private_scalars
from zo_fl.zo.probing import Probing

FIXED = {"seed_policy": "shared", "aggregation": "mean", "weights": "examples"}

BLOCKS: dict[str, Block] = {
    "baffle": {
        **changed(
            without(zo.FIELDS, *FIXED),
            num_rounds=500,
            estimator="forward",
            distribution="gaussian",
            tau=1.0,
            num_directions=100,
            lr=1e-2,
            server={"name": "adam", "b2": 0.99, "weight_decay": 5e-4},
        ),
        "clip": Field(0.3, "largest entry of the gradient estimate; 0 = any", at_least=0),
        "ema": Field(
            0.995, "of the average that is evaluated, at most; 0 = none", at_least=0, below=1
        ),
    }
}


class Averaged(NamedTuple):
    """What the server keeps between rounds.

    Attributes:
      params: moving average of the parameters before each round.
      rounds: ``i32[]`` of the phase, so far.
    """

    params: Params
    rounds: Array


def phases(problem: Problem, *, baffle: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Returns the one phase of BAFFLE; ``baffle`` is its config block."""
    clip, ema = baffle["clip"], baffle["ema"]
    group, aggregation, _ = zo.zeroth_order_clients(problem, {**baffle, **FIXED})
    optimizer = server_optimizers.create(lr=baffle["lr"], **baffle["server"])
    if clip:
        optimizer = optax.chain(clip_by_largest(clip), optimizer)

    def evaluated(state: ServerState, data):
        del data
        return moved(state.strategy_state, state.params, ema).params, state.model_state

    averaged = averaging(aggregation, ema)
    phase = Phase("baffle", baffle["num_rounds"], (group,), averaged, optimizer, evaluated)
    fields = take(Probing, {**baffle, **FIXED})
    return (phase._replace(release=private_scalars.release(fields, problem)),)


def clip_by_largest(limit: float) -> optax.GradientTransformation:
    """Returns the scaling of an update such that no entry is larger than ``limit``."""

    def update(updates, state, params=None):
        del params
        largest = jnp.max(jnp.stack([jnp.max(jnp.abs(u)) for u in jax.tree.leaves(updates)]))
        factor = jnp.minimum(1.0, limit / jnp.maximum(largest, 1e-30))
        return jax.tree.map(lambda u: factor * u, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def averaging(aggregation: Aggregation, ema: float) -> Aggregation:
    """Returns the aggregation, which also keeps the moving average of the parameters so far.

    It is moved by the parameters *before* each round: the last ones are in the state beside it.
    """

    def finalize(mean_update, state: ServerState, run_key):
        gradient, _ = aggregation.finalize(mean_update, state, run_key)
        average = moved(state.strategy_state, state.params, ema)
        return gradient, average._replace(rounds=average.rounds + 1)

    return aggregation._replace(init=_start, finalize=finalize)


def _start(params: Params) -> Averaged:
    # Not the same buffers: a state is donated to the next round, each of its arrays once.
    return Averaged(jax.tree.map(jnp.copy, params), jnp.int32(0))


def moved(average: Averaged, params: Params, ema: float) -> Averaged:
    """Returns the average, moved towards parameters that a number of rounds has arrived at."""
    done = average.rounds.astype(jnp.float32)
    rate = jnp.minimum(ema, (1 + done) / (10 + done))
    new = jax.tree.map(lambda a, p: rate * a + (1 - rate) * p, average.params, params)
    return average._replace(params=new)
