"""A tiny federation, shared by tests: 8 clients, synthetic images, an MLP."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zo_fl import config as configs
from zo_fl import experiment
from zo_fl.engine import algorithm as algorithms
from zo_fl.engine import cohorts, keys, trees
from zo_fl.engine.round import make_algorithm
from zo_fl.host.checkpoint import Checkpoints

ROUNDS = 2

# What each method's own block says here, beside its number of rounds.
BLOCKS: dict[str, dict[str, Any]] = {
    "warmup": dict(local_epochs=1, batch_size=40, augment=False),
    "zo": dict(eps=1e-3, lr=1e-3),
    "heterofl": dict(local_epochs=1, batch_size=40, lr=0.05, augment=False),
    "fedkseed": dict(local_steps=3, batch_size=20, eps=1e-3, lr=1e-4, candidate_seeds=16),
    "decomfl": dict(local_steps=2, lr=1e-4),
    "fedzo": dict(local_steps=2, num_directions=2, radius=0.4),
    "baffle": dict(num_directions=4, lr=1e-3),
    "mezo": {},
    "ridge_cg": dict(check_every="none", calibrate=False),
    "head_sgd": {},
    "head_zo": dict(sketch=4),
}


def config(algorithm="zowarmup", **overrides):
    """Returns a config as nested dicts; overrides are dotted with ``__``: ``zo__lr=0.1``."""
    config: Any = configs.default()
    config.algorithm = algorithm
    config.data.update(name="synthetic", num_clients=8, alpha=1.0, high_fraction=0.5)
    config.model.update(name="mlp", norm="none", width=0.25)
    if "patches" in algorithm:
        config.model.update(name="patches", kernels=8)
    for name, fields in BLOCKS.items():
        config[name].update(num_rounds=ROUNDS, **fields)
    config.run.update(num_devices=1, rounds_per_jit=2, eval_every=2, checkpoint_every=2)
    for name, value in overrides.items():
        block, _, field = name.partition("__")
        if field:
            config[block][field] = value
        else:
            config[block] = value
    if config.model.name != "mlp":
        config.model.width = overrides.get("model__width", 1.0)
    return config.to_dict()


def build(algorithm="zowarmup", **overrides):
    """Returns the experiment of ``config(...)``, checked."""
    return experiment.build(configs.resolve(config(algorithm, **overrides)))


@functools.lru_cache(maxsize=32)
def _first_weights(task, seed):
    """Returns a task's first weights; on the host, for rounds may donate what they are given."""
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    # Of many operations it is compiled whole.
    init = jax.jit(task.init) if len(jax.tree.leaves(shapes)) > 4 else task.init
    with jax.ensure_compile_time_eval():  # also of a state of which only the shapes are asked
        return jax.device_get(init(keys.stream(keys.run_key(seed), "init")))


def start(built, phase, before=None, state=None):
    """Returns a phase's first server state.

    Args:
      built: the experiment.
      phase: one of its phases.
      before: the phase before, None for the run's first weights.
      state: the last state of ``before``.
    """
    if before is None:
        first = algorithms.start(phase, *_first_weights(built.task, built.seed))
    else:
        model = before.model(state, built.data)
        first = algorithms.start(phase, *model, before=state.strategy_state)
    # As in a run: on the mesh from the start, or the second round would be traced anew.
    return jax.device_put(first, built.engine.replicated)


def algorithm(built, phase):
    """Returns a phase as pure functions, on the experiment's own engine."""
    return make_algorithm(phase, built.engine)


def run(built, rounds=1):
    """Returns ``(phase, states, metrics, records)`` of an experiment of one phase.

    The states are one more than the rounds, the first one being that of the start.
    """
    (phase,) = built.phases
    step = jax.jit(algorithm(built, phase).round)
    states, metrics, records = [start(built, phase)], [], []
    for _ in range(rounds):
        state, *found = step(states[-1], built.data_of(phase), built.run_key)
        states.append(state)
        metrics.append(found[0])
        records.append(found[1])
    return phase, states, metrics, records


def only_client(phase):
    """Returns the client of a phase of one group."""
    (group,) = phase.groups
    return group.client


def own_keys(built, client_id, round_idx=0):
    """Returns the keys of a client in a round."""
    return keys.of_round(built.run_key, round_idx).of(client_id)


gathered = jax.jit(cohorts.gather)


def gather(built, client_ids):
    """Returns the batches of some clients, leading axis the clients."""
    return gathered(built.data, np.array(client_ids, np.int32))


def batch_of(built, client_id):
    """Returns the batch of one client."""
    return trees.squeeze(gather(built, [client_id]))


def first_updates(built, phase, state):
    """Returns ``(updates, messages, weights)``, what the clients of a first round send, stacked.

    The messages are those of the first group.
    """
    found = []
    for group in phase.groups:

        def one(batch, client=group.client):
            own = own_keys(built, batch.client_id)
            sent = client.update(state, batch, own)
            return client.decode(sent.message, state, own), sent.message, sent.weight

        cohort = group.sample_cohort(keys.round_key(built.run_key, 0))
        batch = gathered(built.data_of(phase), cohort.client_ids)
        found.append(jax.device_get(jax.jit(jax.vmap(one))(batch)))
    updates, messages, weights = zip(*found, strict=True)
    updates = jax.tree.map(lambda *leaves: np.concatenate(leaves), *updates)
    return updates, messages[0], np.concatenate(weights)


def server_step(built, phase, state, reduced):
    """Returns the parameters and the strategy state after a first round's reduced update."""
    of_round = keys.of_round(built.run_key, 0)
    reduced = jax.tree.map(jnp.float32, reduced)
    params, _, strategy_state = jax.jit(phase.server.step)(reduced, state, of_round)
    return params, strategy_state


def latest(path, like):
    """Returns ``(round, state, progress)`` of the latest checkpoint in a folder, or None."""
    checkpoints = Checkpoints(path)
    done = checkpoints.latest_round()
    return None if done is None else (done, *checkpoints.restore(done, like))
