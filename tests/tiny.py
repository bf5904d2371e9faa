"""A tiny federation, shared by tests: 8 clients, synthetic images, an MLP."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp

from zo_fl import config as configs
from zo_fl import experiment
from zo_fl.engine import cohorts
from zo_fl.engine.round import keys, make_algorithm
from zo_fl.host.checkpoint import Checkpoints

ROUNDS = 2


def config(algorithm="zowarmup", **overrides):
    """Returns a config as nested dicts; overrides are dotted with ``__``: ``zo__lr=0.1``."""
    config: Any = configs.default()
    config.algorithm = algorithm
    config.data.update(name="synthetic", num_clients=8, alpha=1.0, high_fraction=0.5)
    config.model.update(name="mlp", norm="none")
    config.warmup.update(num_rounds=ROUNDS, local_epochs=1, batch_size=40, augment=False)
    config.zo.update(num_rounds=ROUNDS, eps=1e-3, lr=1e-3)
    if "patches" in algorithm:
        config.model.update(name="patches", kernels=8, patch_size=4)
    config.gaussian_head.update(shrinkages=(0.1,), calibrate=False)
    config.ridge_cg.update(check_every=0, calibrate=False)
    others = ("heterofl", "fedkseed", "decomfl", "fedzo", "baffle", "mezo")
    for method in (*others, "ridge_cg", "head_sgd", "head_zo"):
        config[method].num_rounds = ROUNDS
    config.head_zo.sketch = 4
    config.heterofl.update(local_epochs=1, batch_size=40, lr=0.05, augment=False)
    config.fedkseed.update(local_steps=3, batch_size=20, eps=1e-3, lr=1e-4, candidate_seeds=16)
    config.decomfl.update(local_steps=2, lr=1e-4)
    config.fedzo.update(local_steps=2, num_directions=2, radius=0.4)
    config.baffle.update(num_directions=4, eps=1e-3, lr=1e-3)
    config.run.update(num_devices=1, rounds_per_jit=2, eval_every=2, checkpoint_every=2)
    for name, value in overrides.items():
        block, _, field = name.partition("__")
        with config.ignore_type():
            if field:
                config[block][field] = value
            else:
                config[block] = value
    return config.to_dict()


def build(algorithm="zowarmup", **overrides):
    """Returns the experiment of ``config(...)``, checked."""
    return experiment.build(configs.resolve(config(algorithm, **overrides)))


def start(built, phase):
    """Returns a phase's first server state."""
    params, model_state = built.task.init(keys.stream(built.run_key, "init"))
    state = phase.init(params, model_state)
    # As the trainer does: on the mesh from the start, or the second round would be traced anew.
    return jax.device_put(state, built.engine.replicated)


def algorithm(built, phase):
    """Returns a phase as pure functions, on the experiment's own engine."""
    return make_algorithm(phase, built.engine)


def only_strategy(phase):
    """Returns the strategy of a phase of one group."""
    (group,) = phase.groups
    return group.strategy


def gather(built, client_ids):
    """Returns the batches of some clients, leading axis the clients."""
    return cohorts.gather(built.data, jnp.array(client_ids, jnp.int32))


def latest(path, like):
    """Returns ``(round, state, progress)`` of the latest checkpoint in a folder, or None."""
    checkpoints = Checkpoints(path)
    done = checkpoints.latest_round()
    return None if done is None else (done, *checkpoints.restore(done, like))


class jitted:
    """The functions of a module as one program each, as in a round, not one an operation.

    Args:
      module: of pure functions.
      static: names of arguments that are no arrays.
    """

    def __init__(self, module, *static):
        self._module, self._static = module, static

    def __getattr__(self, name):
        function = getattr(self._module, name)
        known = inspect.signature(function).parameters
        compiled = jax.jit(function, static_argnames=[one for one in self._static if one in known])
        setattr(self, name, compiled)
        return compiled
