"""BAFFLE: zeroth-order training from scratch by many forward differences of shared directions.

    z_m ~ N(0, I), m = 1..S (S = 100 to 500), the same for all clients
    client: F_j(w + sigma z_m) - F_j(w)          server: g = mean_m mean_j (...) / sigma z_m
    g <- g * min(1, clip / max|g|),   w <- Adam(w, g)
    evaluated: a <- r a + (1 - r) w after round t,  r = min(0.995, (1 + t) / (10 + t))

The rate r of the average rises: at its last value from the start, nine tenths of what is evaluated
after 20 rounds would be the random start. The clients' scalars enter only through their mean, so
secure aggregation of S floats is enough.

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

from zo_fl.engine import server
from zo_fl.engine.algorithm import Phase, Problem, Server, ServerState
from zo_fl.engine.fields import Block
from zo_fl.engine.keys import Keys
from zo_fl.engine.types import Array, Params, PyTree
from zo_fl.zo import client, methods

CLIP = 0.3  # largest entry of the gradient estimate
AVERAGE = 0.995  # largest rate of the moving average
BLOCKS: dict[str, Block] = {
    "baffle": methods.own_fields(num_rounds=500, num_directions=100, lr=1e-2)
}
FIXED = {
    "estimator": "forward",
    "distribution": "gaussian",
    "tau": 1.0,
    "seed_policy": "shared",
}


class Averaged(NamedTuple):
    """The server's memory between rounds.

    Attributes:
      params: moving average of the parameters before each round.
      rounds: ``i32[]`` of the phase, so far.
    """

    params: Params
    rounds: Array


def phases(
    problem: Problem, *, zo: Mapping[str, Any], baffle: Mapping[str, Any]
) -> tuple[Phase, ...]:
    """Returns the one phase of BAFFLE."""
    block = {**zo, **baffle, **FIXED}
    group, probing = methods.clients(problem, block)
    adam = server.optimizer("adam", block["lr"], b2=0.99, weight_decay=5e-4)
    clipped = optax.chain(clip_by_largest(CLIP), adam)
    averaged = averaging(client.scalar_server(probing, True, clipped))

    def evaluated(state: ServerState, data):
        return moved(state.strategy_state, state.params).params, state.model_state

    return (Phase("baffle", block["num_rounds"], (group,), averaged, evaluated),)


def clip_by_largest(limit: float) -> optax.GradientTransformation:
    """Returns the scaling of an update such that no entry is larger than ``limit``."""

    def clipped(updates, params):
        largest = optax.tree.norm(updates, ord=jnp.inf)
        return optax.tree.scale(jnp.minimum(1.0, limit / jnp.maximum(largest, 1e-30)), updates)

    return optax.stateless(clipped)


def averaging(descending: Server) -> Server:
    """Returns a server that also keeps the moving average of the parameters so far.

    It is moved by the parameters *before* each round: the last ones are in the state beside it.
    """

    def init(params: Params, before: PyTree) -> tuple[PyTree, Averaged]:
        opt_state, _ = descending.init(params, before)
        # Not the same buffers: a state is donated to the next round, each of its arrays once.
        return opt_state, Averaged(jax.tree.map(jnp.copy, params), jnp.int32(0))

    def step(reduced, state: ServerState, keys: Keys):
        params, opt_state, _ = descending.step(reduced, state, keys)
        average = moved(state.strategy_state, state.params)
        return params, opt_state, average._replace(rounds=average.rounds + 1)

    return descending._replace(init=init, step=step)


def moved(average: Averaged, params: Params) -> Averaged:
    """Returns the average, moved towards parameters that a number of rounds has arrived at."""
    done = average.rounds.astype(jnp.float32)
    rate = jnp.minimum(AVERAGE, (1 + done) / (10 + done))
    new = jax.tree.map(lambda a, p: rate * a + (1 - rate) * p, average.params, params)
    return average._replace(params=new)
