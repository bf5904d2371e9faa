"""FedZO: local zeroth-order steps along directions on a sphere, dense deltas to the server.

    v uniform on the unit sphere,  g = d / mu (F(w_i + mu v) - F(w_i)) v,  mean over S directions
    w_i <- w_i - local_lr * g  for k local steps,    delta_i = w - w_i
    server: w <- w - lr * mean_i delta_i                                     (uniform)

The uplink is the model, as in the source: it predates the idea that scalars and a seed are enough,
and is here as that baseline. mu is the field ``radius``: a coordinate
of a model of d parameters moves by mu / sqrt(d), 3e-7 in ResNet18, and rounding in float32 puts
the differences off by 3 % (50 images, at the start; 0.5 % at 1e-2, 4 % at 0.33).

Source: Fang et al., "Communication-Efficient Stochastic Zeroth-Order Optimization for Federated
Learning", IEEE TSP 2022 (arXiv 2201.09531), without its over-the-air variant.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import optax

from zo_fl.engine import server, statistics
from zo_fl.engine.algorithm import Client, ClientBatch, ClientResult, Phase, Problem, ServerState
from zo_fl.engine.fields import Block, Field
from zo_fl.engine.keys import Keys
from zo_fl.zo import client, methods, subspace
from zo_fl.zo.client import Probing

BLOCKS: dict[str, Block] = {
    "fedzo": {
        **methods.own_fields(num_rounds=500, num_directions=5, local_steps=10, batch_size=50),
        "local_lr": Field(4e-5, "rate of a client's own steps", at_least=0),
        "radius": Field(1e-3, "radius mu of the sphere", above=0),
    }
}
FIXED = {"estimator": "forward", "distribution": "sphere", "tau": 1.0}
LR = 1.0  # the server's


def phases(
    problem: Problem, *, zo: Mapping[str, Any], fedzo: Mapping[str, Any]
) -> tuple[Phase, ...]:
    """Returns the one phase of FedZO."""
    params, _ = jax.eval_shape(problem.task.init, jax.random.key(0))
    # The project's directions have norm sqrt(d).
    dimension = subspace.dimension(zo["params"], zo["density"], params)
    block = {**zo, **fedzo, **FIXED, "eps": fedzo["radius"] / math.sqrt(max(dimension, 1))}
    probing = client.make_probing(problem, block, block["local_lr"], uniform=True)
    group = client.make_group(problem, probing, delta_client(probing), block)
    descending = server.descend(
        server.optimizer(block["server"], LR), statistics=statistics.of_server(probing.bn_policy)
    )
    return (Phase("fedzo", block["num_rounds"], (group,), descending),)


def delta_client(probing: Probing) -> Client:
    """Returns the client whose message is ``delta = before - after`` of local steps."""

    def update(state: ServerState, batch: ClientBatch, own: Keys) -> ClientResult:
        root = client.directions_key(own)
        keys_of_step = functools.partial(client.step_keys, root, probing.num_directions)
        result, after = client.probe(probing, state, batch, own, keys_of_step)
        return result._replace(message=optax.tree.sub(state.params, after))

    return Client(update)
