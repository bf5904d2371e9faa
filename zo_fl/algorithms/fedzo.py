"""FedZO: local zeroth-order steps along directions on a sphere, dense deltas to the server.

    v uniform on the unit sphere,  g = d / mu (F(w_i + mu v) - F(w_i)) v,  mean over S directions
    w_i <- w_i - local_lr * g  for k local steps,    delta_i = w - w_i
    server: w <- w - lr * mean_i delta_i                                     (uniform)

The uplink is the model, as in the source: it predates the idea that scalars and a seed are enough,
and is here as that baseline. mu = eps * tau * sqrt(d) in the terms of ``zo.directions``.

Source: Fang et al., "Communication-Efficient Stochastic Zeroth-Order Optimization for Federated
Learning", IEEE TSP 2022 (arXiv 2201.09531), without its over-the-air variant.
"""

from typing import Any

import jax.numpy as jnp
import optax

from zo_fl.clients import scalars, zeroth_order
from zo_fl.core import server_optimizers
from zo_fl.core.phase import Phase, Problem, make_group, make_phase
from zo_fl.core.types import Aggregation, ClientBatch, ClientResult, ClientStrategy, ServerState


def phases(problem: Problem, *, fedzo: dict) -> tuple[Phase, ...]:
    """Returns the one phase of FedZO; ``fedzo`` is the config block of ``phase``."""
    return (phase(problem, **fedzo),)


def phase(
    problem: Problem,
    *,
    num_rounds: int,
    cohort_size: int,
    tiers: str,
    participation: str,
    lr: float,
    server: dict,
    **probing: Any,
) -> Phase:
    """Returns the phase.

    Args:
      problem: task and clients.
      num_rounds: rounds.
      cohort_size: see ``make_group``; likewise ``tiers`` and ``participation``.
      tiers: see above.
      participation: see above.
      lr: server step size along the mean delta.
      server: server optimizer, see ``server_optimizers.create``.
      **probing: see ``zeroth_order.make_prober``.
    """
    prober = zeroth_order.make_prober(problem.task, block="fedzo", **probing)

    def client_update(state: ServerState, batch: ClientBatch, run_key):
        root = scalars.directions_root(state, run_key, batch.client_id)
        probes = zeroth_order.probe(
            prober, state, batch, run_key, lambda step: scalars.step_keys(prober, root, step)
        )
        weight = (probes.size > 0).astype(jnp.float32)
        delta = optax.tree.sub(state.params, probes.params)
        return ClientResult(delta, weight, probes.statistics, {"loss": probes.loss})

    group = make_group(
        problem,
        ClientStrategy(client_update),
        lambda clients, examples: zeroth_order.forward_passes(prober, clients, examples),
        block="fedzo",
        tiers=tiers,
        cohort_size=cohort_size,
        participation=participation,
    )
    aggregation = Aggregation(finalize_state=zeroth_order.finalize_state(prober.bn_policy))
    optimizer = server_optimizers.create(lr=lr, **server)
    return make_phase(problem, "fedzo", num_rounds, (group,), optimizer, aggregation)
