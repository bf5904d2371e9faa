"""The devices of a run, and how clients are laid out on them."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from zo_fl.core.engine import AXIS, Engine
from zo_fl.core.errors import ConfigError
from zo_fl.host import processes


def make_engine(run: Mapping[str, Any]) -> Engine:
    """Returns how clients are laid out; ``run`` is the config block.

    Raises:
      ConfigError: there are no such devices.
    """
    mesh = make_mesh(run["device"], run["num_devices"])
    return Engine(mesh, run["clients_per_vmap"], run["unroll"], is_streamed(run["data"]))


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
    chosen = np.array(devices[: num_devices or len(devices)])
    return Mesh(chosen, (AXIS,), axis_types=(AxisType.Auto,))


def is_streamed(data: str) -> bool:
    """Returns whether training examples stay on the host; ``data`` is ``config.run.data``."""
    return data == "stream" or (data == "auto" and processes.several())
