"""Head methods on the tiny federation, run by the engine alone."""

import jax
import jax.numpy as jnp
import numpy as np

from tests import tiny
from zo_fl.engine import activations, keys, trees
from zo_fl.engine.algorithm import ServerState, start

CLIENTS = 8


def build(method, *, data=(), model=(), run=(), **block):
    """Returns the experiment of a method; ``block`` has fields of its own block."""
    blocks = {method: block, "data": dict(data), "model": dict(model), "run": dict(run)}
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


def run_all(built, phases=None) -> list[ServerState]:
    """Returns the states after each phase, each of which takes one round."""
    states = []
    for phase in built.phases if phases is None else phases:
        state = tiny.start(built, phase) if not states else after(phase, states[-1])
        states.append(one_round(built, phase, state))
    return states


def after(phase, state) -> ServerState:
    """Returns the first state of a phase that follows another one's last."""
    return start(phase, state.params, state.model_state, state.round_idx, state.strategy_state)


def batch_of(built, client):
    """Returns the batch of one client."""
    return trees.squeeze(tiny.gather(built, [client]))


def keys_of(built, client, round_idx=0):
    """Returns the keys of one client in a round."""
    return keys.of_round(built.run_key, round_idx).of(jnp.int32(client))


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


def logits(params, h):
    """Returns the head's logits of features, in float64."""
    head = {name: np.float64(leaf) for name, leaf in params["head"].items()}
    return h @ head["kernel"] + head["bias"]
