"""How anyone rebuilds the update from clients' scalars and the keys of their directions."""

import jax
import jax.numpy as jnp
import optax

from zo_fl.engine import keys
from zo_fl.engine import statistics as batch_statistics
from zo_fl.engine.strategy import Aggregation
from zo_fl.engine.types import Array, Params, ServerState
from zo_fl.zo import estimators
from zo_fl.zo.probing import Prober


def directions_root(state: ServerState, run_key: Array, client_id: Array | None) -> Array:
    """Returns the key of a client's directions in this round, or of all clients'."""
    round_key = keys.round_key(run_key, state.round_idx)
    root = round_key if client_id is None else keys.client_key(round_key, client_id)
    return keys.stream(root, "directions")


def step_keys(prober: Prober, root: Array, step: Array) -> Array:
    """Returns ``key[S]``: the directions of a local step, by one count over all steps."""
    first = step * prober.fields.num_directions
    indices = first + jnp.arange(prober.fields.num_directions)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(root, indices)


def rebuild(prober: Prober, scalars: Array, root: Array, like: Params) -> Params:
    """Returns the sum of the k gradient estimates of scalars ``f32[k, S]``, like ``like``."""
    steps = jnp.arange(scalars.shape[0])
    all_keys = jax.vmap(lambda step: step_keys(prober, root, step))(steps).reshape(-1)
    coefficients = jax.vmap(prober.estimator.coefficients)(scalars).reshape(-1)
    zeros = optax.tree.zeros_like(like)
    return estimators.combine(prober.add_direction, coefficients, all_keys, zeros)


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
        return optax.tree.scale(scale, mean_update), state.strategy_state

    return Aggregation(
        finalize=finalize, finalize_state=batch_statistics.finalize_state(prober.fields.bn_policy)
    )
