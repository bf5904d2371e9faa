"""FedZO: local zeroth-order steps along directions on a sphere, dense deltas to the server.

    v uniform on the unit sphere,  g = d / mu (F(w_i + mu v) - F(w_i)) v,  mean over S directions
    w_i <- w_i - local_lr * g  for k local steps,    delta_i = w - w_i
    server: w <- w - lr * mean_i delta_i                                     (uniform)

The uplink is the model, as in the source: it predates the idea that scalars and a seed are enough,
and is here as that baseline. mu is the field ``radius``, by default the source's 1e-3: a coordinate
of a model of d parameters moves by mu / sqrt(d), 3e-7 in ResNet18, and rounding in float32 puts
the differences off by 3 % (50 images, at the start; 0.5 % at 1e-2, 4 % at 0.33).

Source: Fang et al., "Communication-Efficient Stochastic Zeroth-Order Optimization for Federated
Learning", IEEE TSP 2022 (arXiv 2201.09531), without its over-the-air variant.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from zo_fl.engine import server_optimizers
from zo_fl.engine import statistics as batch_statistics
from zo_fl.engine.fields import Block, Field, changed, take, without
from zo_fl.engine.phase import Participation, Phase, Problem, make_group
from zo_fl.engine.strategy import Aggregation, ClientStrategy
from zo_fl.engine.types import Array, ClientBatch, ClientResult, ServerState
from zo_fl.zo import methods as zo
from zo_fl.zo import precision_check, private_scalars, rebuilding, subspaces, zeroth_order
from zo_fl.zo.probing import Prober, Probing, make_prober

FIXED = ("seed_policy", "aggregation", "weights", "distribution", "eps", "tau")
BLOCKS: dict[str, Block] = {
    "fedzo": {
        **changed(
            without(zo.FIELDS, *FIXED),
            num_rounds=500,
            estimator="forward",
            num_directions=5,
            local_steps=10,
            batch_size=50,
            lr=1.0,
            local_lr=4e-5,
        ),
        "radius": Field(1e-3, "mu, of the sphere", above=0),
    }
}


def phases(problem: Problem, *, fedzo: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Returns the one phase of FedZO; ``fedzo`` is its config block."""
    params, _ = jax.eval_shape(problem.task.init, jax.random.key(0))
    # The directions of ``clients.directions`` have norm sqrt(d).
    dimension = subspaces.dimension(fedzo["params"], fedzo["density"], params)
    eps = fedzo["radius"] / math.sqrt(max(dimension, 1))
    probing = take(Probing, {**fedzo, "distribution": "sphere", "eps": eps, "tau": 1.0})
    prober = make_prober(problem.task, probing, fedzo["local_lr"])
    group = make_group(
        problem,
        delta_strategy(prober),
        prober.forward_passes,
        take(Participation, fedzo),
    )
    aggregation = Aggregation(
        finalize_state=batch_statistics.finalize_state(prober.fields.bn_policy)
    )
    optimizer = server_optimizers.create(lr=fedzo["lr"], **fedzo["server"])
    phase = Phase("fedzo", fedzo["num_rounds"], (group,), aggregation, optimizer)
    return (phase._replace(release=private_scalars.release(probing, problem)),)


def delta_strategy(prober: Prober) -> ClientStrategy:
    """Returns the strategy whose message is ``delta = before - after`` of local steps."""

    def client_update(state: ServerState, batch: ClientBatch, run_key: Array) -> ClientResult:
        root = rebuilding.directions_root(state, run_key, batch.client_id)
        probes = zeroth_order.probe(
            prober, state, batch, run_key, lambda step: rebuilding.step_keys(prober, root, step)
        )
        weight = (probes.size > 0).astype(jnp.float32)
        delta = optax.tree.sub(state.params, probes.params)
        return ClientResult(delta, weight, probes.statistics, {"loss": probes.loss})

    return ClientStrategy(client_update, scalars_twice=precision_check.scalars_twice(prober))
