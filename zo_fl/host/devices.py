"""The devices of a run, and how clients are laid out on them."""

import functools
import os
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from zo_fl.engine import layout as engine
from zo_fl.engine.errors import ConfigError
from zo_fl.engine.layout import Engine
from zo_fl.host import processes

_MOST_CORES = 4  # as devices: each trains a client of its own, and holds its activations


@functools.cache
def prepare() -> bool:
    """Has JAX see a CPU's cores as devices, for ``Engine.of``; returns whether it does.

    To be called before anything asks JAX for its devices: later it does nothing, and so it does
    where the user has said how many devices a CPU is, or where several processes take part.
    """
    said = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if said or getattr(jax.config, "jax_num_cpu_devices") != -1:  # noqa: B009
        return False
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if jax.distributed.is_initialized() or cores in (1, None):
        return False
    try:
        jax.config.update("jax_num_cpu_devices", min(cores, _MOST_CORES))
    except RuntimeError:  # it has looked for devices already
        return False
    return True


def make_engine(run: Mapping[str, Any]) -> Engine:
    """Returns how clients are laid out; ``run`` is the config block.

    Raises:
      ConfigError: there are no such devices.
    """
    has_cores = prepare()
    mesh = make_mesh(run["device"], run["num_devices"])
    cores = tuple(mesh.devices.flat)
    if has_cores and cores[0].platform == "cpu" and not run["num_devices"]:
        mesh = engine.make_mesh(cores[:1])
    else:
        cores = ()
    streamed = is_streamed(run["data"])
    return Engine(mesh, run["clients_per_vmap"], run["unroll"], streamed, cores)


def make_mesh(device: str = "auto", num_devices: int = 0) -> Mesh:
    """Returns a mesh of one axis, ``"clients"``.

    Args:
      device: ``"auto"`` (JAX's choice), ``"cpu"``, ``"gpu"`` or ``"tpu"``.
      num_devices: how many of them; 0 = all.

    Raises:
      ConfigError: there is no such device, or not as many.
    """
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
    return engine.make_mesh(devices[: num_devices or len(devices)])


def is_streamed(data: str) -> bool:
    """Returns whether training examples stay on the host; ``data`` is ``config.run.data``."""
    return data == "stream" or (data == "auto" and processes.several())
