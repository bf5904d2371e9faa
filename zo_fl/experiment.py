"""From a config to the objects of an experiment; nothing is computed or written yet."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from zo_fl import algorithms
from zo_fl.core import keys
from zo_fl.core.engine import Engine
from zo_fl.core.errors import ConfigError
from zo_fl.core.phase import Phase, Problem
from zo_fl.core.task import Task
from zo_fl.core.types import Array, Dataset, FederatedData
from zo_fl.data import federated
from zo_fl.host import processes
from zo_fl.host.devices import make_engine
from zo_fl.tasks import named_task, own_task


class Experiment(NamedTuple):
    """All objects of one run.

    Attributes:
      federation: data set, clients and validation examples, on the host.
      task: model and loss.
      phases: what to run, in order.
      data: the federation's arrays: on the devices, replicated, or still on the host if streamed.
      engine: how clients are laid out on the devices.
      run_key: ``key[]``, root of all randomness but the partition's.
    """

    federation: federated.Federation
    task: Task
    phases: tuple[Phase, ...]
    data: FederatedData
    engine: Engine
    run_key: Array

    @property
    def mesh(self) -> Mesh:
        """The devices, along ``"clients"``."""
        return self.engine.mesh


def build(
    config: Mapping[str, Any], dataset: Dataset | None = None, model: nn.Module | None = None
) -> Experiment:
    """Returns the experiment of a resolved config (``configs/base.py`` as nested dicts).

    Args:
      config: resolved.
      dataset: instead of the one that the config names.
      model: any Linen module, instead of the one that the config names; see ``own_task``.

    Raises:
      ConfigError: whatever is wrong with the config, before anything is traced.
    """
    engine = make_engine(config["run"])  # first: no data set is decoded for a device that is absent
    return assemble(config, federated.load(**config["data"], dataset=dataset), engine, model=model)


def assemble(
    config: Mapping[str, Any],
    federation: federated.Federation,
    engine: Engine,
    width: float = 1.0,
    model: nn.Module | None = None,
) -> Experiment:
    """Returns the experiment of a config on a federation that need not be the config's own.

    Args:
      config: resolved.
      federation: data, and who holds them.
      engine: how clients are laid out on the devices.
      width: share of the channels that the config's model has here.
      model: instead of the config's.

    Raises:
      ConfigError: whatever is wrong with the config, before anything is traced.
    """

    def make_task(share: float) -> Task:
        if model is None:
            return named_task(config["model"], federation.dataset, width * share)
        if share != 1.0:
            raise ConfigError(
                f"{type(model).__name__} has no narrow form, which HeteroFL needs; "
                "change config.algorithm"
            )
        return own_task(model, federation.dataset)

    learning = make_task(1.0)
    problem = Problem(learning, make_task, federation.clients)
    phases = algorithms.create(config["algorithm"], problem, config)
    if not sum(phase.num_rounds for phase in phases):
        raise ConfigError(
            "no rounds to run; change config.warmup.num_rounds or config.zo.num_rounds"
        )
    data = federation.clients
    if engine.streamed:
        _check_streamed(phases)
    else:
        data = processes.place(data, NamedSharding(engine.mesh, P()))
    return Experiment(federation, learning, phases, data, engine, keys.run_key(config["seed"]))


def _check_streamed(phases: Sequence[Phase]) -> None:
    for phase in phases:
        if phase.num_rounds and phase.needs_all_data:
            raise ConfigError(
                f"phase {phase.name} pools statistics over all training data, which are streamed; "
                "set config.run.data to 'device'"
            )
