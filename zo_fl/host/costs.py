"""The cost of a round, from the shapes of the real messages.

    uplink     cohort x (message + uploaded statistics)
    downlink   receivers x (new model, or scalars to rebuild it, + the new statistics)

The cohort receives a first-order round as the new model (HeteroFL's narrow clients: their slice of
it). The whole population receives a zeroth-order round as scalars, because every client must follow
every update; an absent one catches up later with the same bytes. When such a phase begins, everyone
receives the model once. Directions come from keys and cost nothing.

Source: ZOWarmUp, A.3 and Table 1, whose communication columns are scrambled as printed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zo_fl.engine import cohorts, keys, trees
from zo_fl.engine.algorithm import TIERS, ClientBatch, Group, Phase, Stop, start
from zo_fl.engine.round import traced_once
from zo_fl.engine.types import LOW, FederatedData, ModelState, Params


class Cost(NamedTuple):
    """The cost of a round, of a question, or of many of them, to all clients together.

    Attributes:
      at_start: bytes of downlink, once, when the phase begins.
      uplink: bytes.
      downlink: bytes.
      low_uplink: bytes of one low-resource client, the mean over all of them.
      forward_passes: of single examples.
      backward_passes: of single examples; one costs about two forward passes.
      low_passes: of one low-resource client, in forward passes.
    """

    at_start: int = 0
    uplink: int = 0
    downlink: int = 0
    low_uplink: float = 0.0
    forward_passes: float = 0.0
    backward_passes: float = 0.0
    low_passes: float = 0.0

    @property
    def pass_equivalents(self) -> float:
        """Forward passes; a backward pass counts two."""
        return self.forward_passes + 2 * self.backward_passes


class GroupTraffic(NamedTuple):
    """Bytes that one group's clients send and receive in a round.

    Attributes:
      uplink: of the cohort.
      received: downlink of one client in it.
      broadcast: downlink of one client that replays the round.
      low_uplink: of one low-resource client, the mean over all of them.
    """

    uplink: int
    received: int
    broadcast: int
    low_uplink: float


def phase_cost(phase: Phase, params: Params, model_state: ModelState, data: FederatedData) -> Cost:
    """Returns the cost of a round of a phase.

    The model is of arrays or ``jax.ShapeDtypeStruct``; the data, NumPy arrays, are the phase's.
    """
    found = [group_traffic(group, phase, params, model_state, data) for group in phase.groups]
    if phase.replays:
        population = len(data.client_sizes)
        at_start = population * max(each.received for each in found)
        downlink = population * sum(each.broadcast for each in found)
    else:
        pairs = zip(phase.groups, found, strict=True)
        at_start, downlink = 0, sum(group.cohort_size * each.received for group, each in pairs)
    return Cost(
        at_start=at_start,
        uplink=sum(each.uplink for each in found),
        downlink=downlink,
        low_uplink=sum(each.low_uplink for each in found),
        forward_passes=sum(group.forward_passes for group in phase.groups),
        backward_passes=sum(group.backward_passes for group in phase.groups),
        low_passes=sum(
            float(_low_share(group, data).sum()) * group.pass_equivalents / group.cohort_size
            for group in phase.groups
        ),
    )


def question_cost(
    phase: Phase, stop: Stop, params: Params, model_state: ModelState, validation: FederatedData
) -> Cost:
    """Returns the cost of a question: a model down, one integer up, one forward pass."""
    tiers = np.asarray(validation.client_tiers)
    asked = np.isin(tiers, TIERS[stop.tiers])
    model = jax.eval_shape(lambda *model: stop.sent(start(phase, *model)), params, model_state)
    keeps = phase.keeping is not None and phase.keeping.on_client
    examples = 0.0 if keeps else float(np.asarray(validation.client_sizes)[asked].mean())
    low = float((asked & (tiers == LOW)).sum()) / max((tiers == LOW).sum(), 1)
    count, answer = int(asked.sum()), np.dtype(np.int32).itemsize
    return Cost(
        uplink=answer * count,
        downlink=count * trees.num_bytes(model),
        low_uplink=answer * low,
        forward_passes=count * examples,
        low_passes=low * examples,
    )


def group_traffic(
    group: Group, phase: Phase, params: Params, model_state: ModelState, data: FederatedData
) -> GroupTraffic:
    """Returns the traffic of one group of a phase; the arguments are those of ``phase_cost``."""
    client = traced_once(group).client

    def one(params, model_state, data):
        state = start(phase, params, model_state)._replace(opt_state=())
        batch = first_client(data)
        own = keys.of_round(keys.run_key(0), 0).of(batch.client_id)
        result = client.update(state, batch, own)
        return result, client.decode(result.message, state, own), client.receives(state)

    result, update, received = jax.eval_shape(one, params, model_state, data)
    message, uploaded = trees.num_bytes(result.message), trees.num_bytes(result.model_state)
    sent = _sent(group, message, data) + uploaded
    # All messages, or their sum where that is smaller (shared directions, pools).
    broadcast = min(group.cohort_size * message, trees.num_bytes(update)) + uploaded
    return GroupTraffic(
        uplink=round(group.cohort_size * sent.mean()),
        received=trees.num_bytes(received),
        broadcast=broadcast,
        low_uplink=float(sent @ _low_share(group, data)),
    )


def first_client(data: FederatedData) -> ClientBatch:
    """Returns the batch of the population's first client."""
    return trees.squeeze(cohorts.gather(data, jnp.zeros(1, jnp.int32)))


def _low_share(group: Group, data: FederatedData) -> np.ndarray:
    """Returns ``f64[E]``, each client's share in a round of the mean low-resource client.

    The sum is the chance that a low-resource client takes part in a round.
    """
    is_low = np.asarray(data.client_tiers) == LOW
    participation = group.cohort_size / len(group.eligible)
    return is_low[group.eligible] * participation / max(is_low.sum(), 1)


def _sent(group: Group, message: int, data: FederatedData) -> np.ndarray:
    """Returns ``f64[E]``, the bytes that each client sends; a whole message has ``message``."""
    sent_bytes = group.client.sent_bytes
    if sent_bytes is None:
        return np.full(len(group.eligible), float(message))

    @jax.jit
    def sizes(data, ids):
        batch_of = lambda i: trees.squeeze(cohorts.gather(data, i[None]))  # noqa: E731
        return jax.lax.map(lambda i: sent_bytes(batch_of(i)), ids)

    return np.asarray(sizes(data, group.eligible), np.float64)
