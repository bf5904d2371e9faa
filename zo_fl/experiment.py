"""From a config to the objects of an experiment; nothing is computed or written yet."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from zo_fl import algorithms, models
from zo_fl.core import keys, task
from zo_fl.core.engine import AXIS, Engine
from zo_fl.core.errors import ConfigError
from zo_fl.core.phase import Phase, Problem
from zo_fl.core.types import Array, FederatedData
from zo_fl.data import federated
from zo_fl.host import processes


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
    task: task.Task
    phases: tuple[Phase, ...]
    data: FederatedData
    engine: Engine
    run_key: Array

    @property
    def mesh(self) -> Mesh:
        """The devices, along ``"clients"``."""
        return self.engine.mesh


def build(config: Mapping[str, Any]) -> Experiment:
    """Returns the experiment of a resolved config (``configs/base.py`` as nested dicts).

    Raises:
      ConfigError: whatever is wrong with the config, before anything is traced.
    """
    engine = make_engine(config["run"])  # first: no data set is decoded for a device that is absent
    return assemble(config, federated.load(**config["data"]), engine)


def assemble(
    config: Mapping[str, Any],
    federation: federated.Federation,
    engine: Engine,
    width: float = 1.0,
) -> Experiment:
    """Returns the experiment of a config on a federation that need not be the config's own.

    Args:
      config: resolved.
      federation: data, and who holds them.
      engine: how clients are laid out on the devices.
      width: share of the channels that the config's model has here.

    Raises:
      ConfigError: whatever is wrong with the config, before anything is traced.
    """
    dataset = federation.dataset

    def make_task(share: float) -> task.Task:
        module = models.create(
            **config["model"], num_classes=dataset.num_classes, width=width * share
        )
        return task.classification(
            module,
            dataset.train["image"].shape[1:],
            dataset.num_classes,
            dataset.mean,
            dataset.std,
        )

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


def make_engine(run: Mapping[str, Any]) -> Engine:
    """Returns how clients are laid out; ``run`` is the config block.

    Raises:
      ConfigError: a field out of range.
    """
    mesh = make_mesh(run["device"], run["num_devices"])
    for field, least in (("clients_per_vmap", 0), ("unroll", 1)):
        if run[field] < least:
            raise ConfigError(
                f"{field} is {run[field]}; it must be >= {least}; change config.run.{field}"
            )
    return Engine(mesh, run["clients_per_vmap"], run["unroll"], is_streamed(run["data"]))


def make_mesh(device: str = "auto", num_devices: int = 0) -> Mesh:
    """Returns a mesh of one axis, ``"clients"``.

    Args:
      device: ``"auto"`` (JAX's choice), ``"cpu"``, ``"gpu"`` or ``"tpu"``.
      num_devices: how many of them; 0 = all.

    Raises:
      ConfigError: there is no such device, or not as many.
    """
    if device not in ("auto", "cpu", "gpu", "tpu"):
        raise ConfigError(
            f"unknown device {device!r}; allowed: auto, cpu, gpu, tpu; change config.run.device"
        )
    try:
        devices = jax.devices(None if device == "auto" else device)
    except RuntimeError:
        raise ConfigError(
            f"no {device} device here; JAX sees {jax.default_backend()}; change config.run.device "
            "(or install the extra: pip install 'zo_fl[cuda]' or 'zo_fl[tpu]')"
        ) from None
    if not 0 <= num_devices <= len(devices):
        raise ConfigError(
            f"{num_devices} devices asked for, allowed: 0 (all) to {len(devices)}; "
            "change config.run.num_devices"
        )
    if processes.several() and num_devices not in (0, len(devices)):
        raise ConfigError(
            f"{num_devices} devices asked for, several processes use all {len(devices)}; "
            "set config.run.num_devices to 0"
        )
    chosen = np.array(devices[: num_devices or len(devices)])
    return Mesh(chosen, (AXIS,), axis_types=(AxisType.Auto,))


def is_streamed(data: str) -> bool:
    """Returns whether training examples stay on the host; ``data`` is ``config.run.data``.

    Raises:
      ConfigError: it is none of ``"auto"``, ``"device"`` and ``"stream"``.
    """
    if data not in ("auto", "device", "stream"):
        raise ConfigError(
            f"unknown data {data!r}; allowed: auto, device, stream; change config.run.data"
        )
    return data == "stream" or (data == "auto" and processes.several())


def _check_streamed(phases: Sequence[Phase]) -> None:
    for phase in phases:
        if phase.num_rounds and phase.needs_all_data:
            raise ConfigError(
                f"phase {phase.name} pools statistics over all training data, which are streamed; "
                "set config.run.data to 'device'"
            )
