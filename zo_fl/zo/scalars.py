"""Clients that send scalars: the differences of their losses along directions of known keys."""

import jax.numpy as jnp

from zo_fl.engine.strategy import ClientStrategy, as_sent
from zo_fl.engine.types import ClientBatch, ClientResult, ServerState
from zo_fl.zo import precision_check, zeroth_order
from zo_fl.zo.probing import Prober
from zo_fl.zo.rebuilding import directions_root, rebuild, step_keys


def scalar_strategy(prober: Prober, *, shared: bool, uniform: bool) -> ClientStrategy:
    """Returns the strategy whose message is ``f32[k, S]`` scalars of k local steps.

    Args:
      prober: how losses are probed.
      shared: the server rebuilds from the mean of the messages, see ``rebuilding``.
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
        return rebuild(prober, message, directions_root(state, run_key, client_id), state.params)

    one_model = shared and prober.fields.local_steps == 1
    return ClientStrategy(
        client_update,
        as_sent if shared else decode,
        replays=True,
        one_model=one_model,
        scalars_twice=precision_check.scalars_twice(prober),
    )
