"""Head methods on the tiny federation, run by the engine alone."""

import jax
import numpy as np

from tests import tiny
from zo_fl.engine import activations
from zo_fl.engine.algorithm import ServerState, start
from zo_fl.engine.types import HIGH

CLIENTS = 8


def build(method, *, data=(), model=(), **block):
    """Returns the experiment of a method; ``block`` has fields of its own block."""
    blocks = {method: block, "data": dict(data), "model": {"width": 1.0} | dict(model)}
    given = {
        f"{name}__{f}": value for name, fields in blocks.items() for f, value in fields.items()
    }
    return tiny.build(method, **given)


def one_round(built, phase, state=None) -> ServerState:
    """Returns the state after a round of the phase."""
    return rounds(built, phase, 1, state)[-1]


def rounds(built, phase, count, state=None) -> list[ServerState]:
    """Returns the states after some rounds of the phase, one a round."""
    states = [tiny.start(built, phase) if state is None else state]
    step = jax.jit(tiny.algorithm(built, phase).round)
    for _ in range(count):
        states.append(step(states[-1], built.data_of(phase), built.run_key)[0])
    return states[1:]


def run_all(built, phases=None, first=None) -> list[ServerState]:
    """Returns the states after each phase, each of which takes one round; ``first`` is before."""
    states = []
    for phase in built.phases if phases is None else phases:
        state = after(phase, states[-1]) if states else first or tiny.start(built, phase)
        states.append(one_round(built, phase, state))
    return states


def far(built, phase) -> ServerState:
    """Returns a first state of features that lie 1,000 deviations from 0."""
    state = tiny.start(built, phase)
    h, _ = seen(built, state)
    bias = state.params["hidden"]["bias"] + 1000 * np.float32(h.std())
    return state._replace(params=state.params | {"hidden": state.params["hidden"] | {"bias": bias}})


def after(phase, state) -> ServerState:
    """Returns the first state of a phase that follows another one's last."""
    return start(phase, state.params, state.model_state, state.round_idx, state.strategy_state)


def high_tier(built):
    """Returns the ids of the high-resource clients."""
    return np.flatnonzero(np.asarray(built.federation.clients.client_tiers) == HIGH)


def seen(built, state, clients=range(CLIENTS), data=None):
    """Returns features and labels of some clients' examples, pooled, in float64."""
    data = built.federation.clients if data is None else data
    rows = np.concatenate([data.client_indices[j, : data.client_sizes[j]] for j in clients])
    # Of the whole set, rows picked afterwards: another number of rows would compile anew.
    mask = np.ones(len(data.examples["label"]), bool)
    features = activations.features(
        built.task, state.params, state.model_state, data.examples, mask
    )
    return np.asarray(features, np.float64)[rows], data.examples["label"][rows]


def logits(head, h):
    """Returns the logits of features by a head's kernel and bias, in float64."""
    return h @ np.float64(head["kernel"]) + np.float64(head["bias"])


def log_softmax(z):
    """Returns ``log softmax`` of each row, in NumPy."""
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def centered(z):
    """Returns logits without what all classes share."""
    return z - z.mean(1, keepdims=True)
