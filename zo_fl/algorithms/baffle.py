"""BAFFLE: zeroth-order training from scratch by many forward differences of shared directions.

    z_m ~ N(0, I), m = 1..S (S = 100 to 500), the same for all clients
    client: F_j(w + sigma z_m) - F_j(w)          server: g = mean_m mean_j (...) / sigma z_m
    g <- g * min(1, clip / max|g|),   w <- Adam(w, g),   evaluated: moving average of w

It predates ZOWarmUp as a method that starts from random weights. The clients' scalars enter only
through their mean, so secure aggregation of S floats is enough.

Differs from the source's code: only parameters are perturbed, never running statistics; directions
are shared, as in its paper; clients count by their examples; the mean over clients is clipped, not
each client's estimate; weight decay is decoupled; the average moves every round, not every epoch.

Source: Feng et al., "Does Federated Learning Really Need Backpropagation?" (arXiv 2301.12195).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from zo_fl.algorithms import zo
from zo_fl.core import server_optimizers
from zo_fl.core.fields import Block, Field, changed, without
from zo_fl.core.phase import Phase, Problem
from zo_fl.core.strategy import Aggregation
from zo_fl.core.types import ServerState

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
        "ema": Field(0.995, "of the average that is evaluated; 0 = none", at_least=0, below=1),
    }
}


def phases(problem: Problem, *, baffle: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Returns the one phase of BAFFLE; ``baffle`` is its config block."""
    clip, ema = baffle["clip"], baffle["ema"]
    group, aggregation, _ = zo.zeroth_order_clients(problem, {**baffle, **FIXED})
    optimizer = server_optimizers.create(lr=baffle["lr"], **baffle["server"])
    if clip:
        optimizer = optax.chain(clip_by_largest(clip), optimizer)

    def evaluated(state: ServerState, data):
        del data
        return moved(state.strategy_state, state.params, ema), state.model_state

    averaged = averaging(aggregation, ema)
    return (Phase("baffle", baffle["num_rounds"], (group,), averaged, optimizer, evaluated),)


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
        return gradient, moved(state.strategy_state, state.params, ema)

    return aggregation._replace(init=_copy, finalize=finalize)


def _copy(params):
    # Not the same buffers: a state is donated to the next round, each of its arrays once.
    return jax.tree.map(jnp.copy, params)


def moved(average, params, ema: float):
    """Returns ``ema * average + (1 - ema) * params``."""
    return jax.tree.map(lambda a, p: ema * a + (1 - ema) * p, average, params)
