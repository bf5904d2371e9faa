"""What a run sends: bytes by the shapes of the real messages.

Communication of one round, over all clients together:

    uplink     cohort x (message + uploaded statistics)
    downlink   receivers x (what the update is rebuilt from + the new statistics)

A first-order round is received by its cohort, as the new model (HeteroFL's narrow clients: their
slice of it). A zeroth-order round is received by
the whole population, as scalars: every client must follow every update, and one that was absent
catches up later with the same bytes. When such a phase begins, everyone receives the model once,
and what else it goes on with.
Directions come from keys and cost nothing.

Source: ZOWarmUp, A.3 and Table 1, whose communication columns are scrambled as printed.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zo_fl.engine import cohorts, keys, trees
from zo_fl.engine.phase import Phase
from zo_fl.engine.strategy import Group, traced_once
from zo_fl.engine.types import LOW, FederatedData, ModelState, Params


class Traffic(NamedTuple):
    """Bytes over all clients together.

    Attributes:
      at_start: downlink once, when the phase begins.
      uplink: a round.
      downlink: a round.
      low_uplink: a round, of one low-resource client: the mean over all there are.
    """

    at_start: int
    uplink: int
    downlink: int
    low_uplink: float


def phase_traffic(
    phase: Phase, params: Params, model_state: ModelState, data: FederatedData
) -> Traffic:
    """Returns a phase's traffic, from the shapes of what its groups of clients send and receive.

    Args:
      phase: any phase.
      params: arrays or ``jax.ShapeDtypeStruct``.
      model_state: likewise.
      data: the federation, arrays or shapes.
    """
    groups = [group_traffic(group, phase, params, model_state, data) for group in phase.groups]
    uplink = sum(group.uplink for group in groups)
    low_uplink = sum(group.low_uplink for group in groups)
    if not phase.replays:
        return Traffic(0, uplink, sum(group.downlink for group in groups), low_uplink)
    population = data.client_sizes.shape[0]
    received = max(group.received for group in groups)
    broadcast = sum(group.broadcast for group in groups)
    return Traffic(population * received, uplink, population * broadcast, low_uplink)


class GroupTraffic(NamedTuple):
    """Bytes of one group in a round.

    Attributes:
      uplink: of the cohort.
      downlink: to the cohort, of what its strategy receives.
      received: of that, by each client.
      broadcast: to each client that follows the rounds by replaying them.
      low_uplink: of one low-resource client, the mean over all there are.
    """

    uplink: int
    downlink: int
    received: int
    broadcast: int
    low_uplink: float


def group_traffic(
    group: Group, phase: Phase, params: Params, model_state: ModelState, data: FederatedData
) -> GroupTraffic:
    """Returns the traffic of one group of a phase; the arguments are ``phase_traffic``'s."""

    strategy = traced_once(group).strategy

    def one(params, model_state, data):
        state = phase.init(params, model_state)._replace(opt_state=())
        batch, key = first_client(data), keys.run_key(0)
        result = strategy.client_update(state, batch, key)
        update = strategy.decode(result.message, batch.client_id, state, key)
        return result, update, strategy.receives(state)

    result, update, received = jax.eval_shape(one, params, model_state, data)
    message, uploaded = trees.num_bytes(result.message), trees.num_bytes(result.model_state)
    sent = _sent(group, message, data) + uploaded
    low = low_share(group, data)
    # All messages, or what they add up to where that is smaller (shared directions, pools).
    broadcast = min(group.cohort_size * message, trees.num_bytes(update)) + uploaded
    return GroupTraffic(
        round(group.cohort_size * sent.mean()),
        group.cohort_size * trees.num_bytes(received),
        trees.num_bytes(received),
        broadcast,
        float(sent @ low),
    )


def low_share(group: Group, data: FederatedData) -> np.ndarray:
    """Returns ``f64[E]``: rounds that a low-resource client spends as each client of the group.

    The sum is what part of the rounds the mean low-resource client takes part in.
    """
    is_low = np.asarray(data.client_tiers) == LOW
    participation = group.cohort_size / len(group.eligible)
    return is_low[group.eligible] * participation / max(is_low.sum(), 1)


def _sent(group: Group, message: int, data: FederatedData) -> np.ndarray:
    """Returns ``f64[E]``, bytes that each client of a group sends, ``message`` if it sends all."""
    sent_bytes: Any = group.strategy.sent_bytes
    if sent_bytes is None:
        return np.full(len(group.eligible), float(message))

    def one(data, client_id):
        return sent_bytes(trees.squeeze(cohorts.gather(data, client_id[None])))

    sizes = jax.jit(lambda data, ids: jax.lax.map(lambda i: one(data, i), ids))
    return np.asarray(sizes(data, group.eligible), np.float64)


def cumulative(traffic: Traffic, rounds: int) -> tuple[int, int]:
    """Returns ``(uplink, downlink)`` bytes after some rounds of a phase."""
    if rounds == 0:
        return 0, 0
    return traffic.uplink * rounds, traffic.at_start + traffic.downlink * rounds


def first_client(data: FederatedData):
    """Returns the first client's batch."""
    return trees.squeeze(cohorts.gather(data, jnp.zeros(1, jnp.int32)))
