"""Clients that send scalars, and how anyone rebuilds the update from them and the keys."""

import jax
import jax.numpy as jnp
import optax

from zo_fl.clients import batch_statistics, estimators, zeroth_order
from zo_fl.clients.zeroth_order import Prober
from zo_fl.core import keys
from zo_fl.core.strategy import Aggregation, ClientStrategy
from zo_fl.core.types import Array, ClientBatch, ClientResult, Params, ServerState


def scalar_strategy(prober: Prober, *, shared: bool, uniform: bool) -> ClientStrategy:
    """Returns the strategy whose message is ``f32[k, S]`` scalars of k local steps.

    Args:
      prober: how losses are probed.
      shared: the server rebuilds from the mean of the messages, see ``scalar_aggregation``.
      uniform: clients count the same, whatever their number of examples.
    """

    def client_update(state: ServerState, batch: ClientBatch, run_key):
        root = directions_root(state, run_key, None if shared else batch.client_id)
        probes = zeroth_order.probe(
            prober, state, batch, run_key, lambda step: step_keys(prober, root, step)
        )
        weight = (probes.size > 0).astype(jnp.float32) if uniform else probes.size
        return ClientResult(probes.scalars, weight, probes.statistics, {"loss": probes.loss})

    def decode(message, client_id, state: ServerState, run_key):
        if shared:
            return message
        return rebuild(prober, message, directions_root(state, run_key, client_id), state.params)

    one_model = shared and prober.fields.local_steps == 1
    return ClientStrategy(
        client_update,
        decode,
        replays=True,
        one_model=one_model,
        scalars_twice=zeroth_order.scalars_twice(prober),
    )


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


def directions_root(state: ServerState, run_key: Array, client_id: Array | None) -> Array:
    """Returns the key of a client's directions in this round, or of all clients'."""
    round_key = keys.round_key(run_key, state.round_idx)
    root = round_key if client_id is None else keys.client_key(round_key, client_id)
    return keys.stream(root, "directions")
