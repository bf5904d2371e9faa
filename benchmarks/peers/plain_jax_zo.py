"""A federated zeroth-order round as one writes it at first, with JAX alone.

A jitted round: a direction is a call of the generator for each leaf, clients and directions are
mapped one after the other, and directions are drawn again for the update.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from . import jax_models, timing
from .workloads import EPSILON, WORKLOADS, ZO_LEARNING_RATE, client_data


def draw(key: jax.Array, weights: jax_models.Weights) -> jax_models.Weights:
    """Returns a direction of -1 and 1."""
    keys = jax.random.split(key, len(weights))
    return {
        name: jax.random.rademacher(leaf_key, weights[name].shape, jnp.float32)
        for leaf_key, name in zip(keys, sorted(weights), strict=True)
    }


def move(weights: jax_models.Weights, direction: jax_models.Weights, scale) -> jax_models.Weights:
    """Returns the weights plus ``scale`` times the direction."""
    return jax.tree_util.tree_map(lambda w, z: w + scale * z, weights, direction)


def main() -> None:
    """Runs the command."""
    arguments = timing.parser(__doc__, ["W2", "W3"]).parse_args()
    timing.limit_cores(arguments.threads)
    workload = WORKLOADS[arguments.workload]
    images, labels = map(jnp.asarray, client_data(workload))
    weights, loss = jax_models.create(workload)
    step = ZO_LEARNING_RATE / (workload.clients * workload.directions)

    @functools.partial(jax.jit, donate_argnums=0)
    def zo_round(weights, keys, images, labels):
        def client(data):
            client_images, client_labels, client_keys = data

            def slope(key):
                direction = draw(key, weights)
                above = loss(move(weights, direction, EPSILON), client_images, client_labels)
                below = loss(move(weights, direction, -EPSILON), client_images, client_labels)
                return (above - below) / (2 * EPSILON)

            return lax.map(slope, client_keys)

        def apply(weights, pair):
            key, scalar = pair
            return move(weights, draw(key, weights), -step * scalar), None

        scalars = lax.map(client, (images, labels, keys))
        return lax.scan(apply, weights, (keys.reshape(-1), scalars.reshape(-1)))[0]

    @jax.jit
    def inference(weights, images, labels):
        return lax.map(lambda data: loss(weights, *data), (images, labels))

    state = {"weights": weights}

    def run_round(index: int) -> None:
        keys = jax.random.split(jax.random.key(index), (workload.clients, workload.directions))
        state["weights"] = zo_round(state["weights"], keys, images, labels)
        jax.block_until_ready(state)

    def infer(_: int) -> None:
        for _ in range(2 * workload.directions):
            inference(state["weights"], images, labels).block_until_ready()

    seconds = timing.time_calls(run_round, arguments.rounds)
    forward = timing.time_calls(infer, arguments.rounds)
    timing.report(arguments, "plain jax", ["jax"], seconds, forward)


if __name__ == "__main__":
    main()
