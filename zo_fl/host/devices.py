"""The machine of a run: its devices, the layout of clients on them, and its provenance."""

import ctypes
import datetime
import functools
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from zo_fl.data import cache
from zo_fl.engine import keys, layout
from zo_fl.engine.fields import ConfigError
from zo_fl.engine.layout import Engine
from zo_fl.host import processes

_MOST_CORES = 4  # as devices: each trains a client of its own, and holds its activations
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ml-collections")
_NUMERICS = ("jax_default_matmul_precision", "jax_threefry_partitionable", "jax_enable_x64")

# Switch of JAX -> values under which rounds run, and why they do not under others.
_SWITCHES = {
    "jax_disable_jit": ((False,), "rounds are compiled"),
    "jax_numpy_dtype_promotion": (("standard",), "labels, masks and pixels are multiplied"),
    "jax_transfer_guard": ((None, "allow", "log"), "data go to the device by themselves"),
}


@functools.cache
def prepare() -> bool:
    """Makes JAX see a CPU's cores as devices, for ``Engine.of``; returns whether it does.

    It does nothing once JAX was asked for its devices, where the user has set the number of devices
    of a CPU, or where several processes take part.
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


def return_memory() -> None:
    """Returns freed memory to the system, which compiling leaves behind in pieces.

    glibc keeps it: 160 MB after the quickstart's programs. Other C libraries do nothing here.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def begin() -> None:
    """Makes JAX ready for a run: cores as devices, the devices themselves, programs that are kept.

    Raises:
      ConfigError: as ``all_devices``; or a switch of JAX is set that rounds cannot be run under.
    """
    for switch, (allowed, why) in _SWITCHES.items():
        if getattr(jax.config, switch) not in allowed:
            raise ConfigError(
                f"{switch.upper()}={getattr(jax.config, switch)}: {why}; allowed: "
                f"{', '.join(map(str, allowed))}"
            )
    prepare()
    all_devices()
    keep_programs()


def keep_programs() -> None:
    """Keeps compiled programs between runs, unless JAX's cache is configured already."""
    if getattr(jax.config, "jax_compilation_cache_dir") is None:  # noqa: B009
        jax.config.update("jax_compilation_cache_dir", str(cache.root() / "xla"))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            # JAX's own second would leave out first weights and evaluation of a small model.
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def all_devices() -> list[Any]:
    """Returns JAX's devices.

    Raises:
      ConfigError: there are none of the platform that it was told to use.
    """
    try:
        return jax.devices()
    except Exception as error:  # of JAX's plugins: RuntimeError, AssertionError and others
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        asked = os.environ.get("JAX_PLATFORMS") or os.environ.get("JAX_PLATFORM_NAME")
        change = f"JAX_PLATFORMS={asked}" if asked else "what JAX is installed with"
        raise ConfigError(f"JAX finds no device ({first}); change {change}") from None


def make_engine(run: Mapping[str, Any]) -> Engine:
    """Returns the layout of clients; ``run`` is the config block, with 0 for ``auto``.

    Raises:
      ConfigError: there are no such devices.
    """
    has_cores = prepare()
    mesh = make_mesh(run["num_devices"])
    cores = tuple(mesh.devices.flat)
    if has_cores and cores[0].platform == "cpu" and not run["num_devices"]:
        mesh = layout.make_mesh(cores[:1])
    else:
        cores = ()
    return Engine(mesh, run["clients_per_vmap"], is_streamed(run["data"]), cores)


def make_mesh(num_devices: int = 0) -> Mesh:
    """Returns a mesh of one axis, ``"clients"``, of JAX's first ``num_devices``; 0 = all.

    Raises:
      ConfigError: there are not as many.
    """
    devices = all_devices()
    if not 0 <= num_devices <= len(devices):
        raise ConfigError(
            f"{num_devices} devices asked for, allowed: 1 to {len(devices)}, or auto; "
            "change config.run.num_devices"
        )
    if processes.several() and num_devices not in (0, len(devices)):
        raise ConfigError(
            f"{num_devices} devices asked for, several processes use all {len(devices)}; "
            "set config.run.num_devices to 'auto'"
        )
    return layout.make_mesh(devices[: num_devices or len(devices)])


def is_streamed(data: str) -> bool:
    """Returns whether training examples stay on the host; ``data`` is ``config.run.data``."""
    return data == "stream" or (data == "auto" and processes.several())


def provenance(version: str) -> dict[str, Any]:
    """Returns the provenance of a run as JSON, without user or machine names.

    Args:
      version: of this package in use; another one may be installed.

    Returns:
      ``started`` (UTC), ``versions``, ``devices``, ``numerics``, and ``git``, see ``git_state``.
    """
    devices = jax.devices()
    versions = {"python": platform.python_version(), "zo_fl": version}
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions | {name: importlib.metadata.version(name) for name in _PACKAGES},
        "git": git_state(Path(__file__).parent),
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
        },
        "numerics": {
            "prng_implementation": keys.IMPLEMENTATION,
            "protocol": keys.PROTOCOL,
            **{name: getattr(jax.config, name) for name in _NUMERICS},
        },
    }


def check_random_numbers(path: Path, saved: Mapping[str, Any]) -> None:
    """Checks that keys stand for the numbers that they stood for in a run.

    Args:
      path: the run's folder.
      saved: its config and provenance, as in ``config.json``.

    Raises:
      ConfigError: they do not: what is resumed or replayed would be another run.
    """
    numerics = (saved.get("provenance") or {}).get("numerics") or {}
    here = jax.config.jax_threefry_partitionable  # pyright: ignore
    if (then := numerics.get("jax_threefry_partitionable", here)) != here:
        raise ConfigError(
            f"{path} was made with jax_threefry_partitionable={then}, which draws other numbers "
            f"than {here}; set the environment variable JAX_THREEFRY_PARTITIONABLE={int(then)}"
        )
    density = (saved["config"].get("zo") or {}).get("density", 1.0)
    if density != 1.0 and numerics.get("protocol", 1) < 2:
        raise ConfigError(
            f"{path} was made when config.zo.density={density} chose other coordinates; start "
            "again with another --workdir"
        )


def git_state(folder: Path) -> dict[str, Any] | None:
    """Returns ``{"revision", "dirty"}`` if git tracks a folder, else None."""

    def git(*command: str) -> str:
        ended = subprocess.run(
            ["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=10
        )
        return ended.stdout.strip() if ended.returncode == 0 else ""

    with suppress(OSError, subprocess.SubprocessError):
        # Tracks, not contains: a virtual environment may lie in another project's repository.
        if git("ls-files", "--", ".") and (revision := git("rev-parse", "HEAD")):
            return {"revision": revision, "dirty": bool(git("status", "--porcelain"))}
    return None
