"""With what a run was made: what one needs to run it again, and nothing about who ran it."""

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

from zo_fl.engine import keys

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "ml-collections",
    "tensorflow-datasets",
)
_NUMERICS = (
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_enable_x64",
)


def provenance(version: str) -> dict[str, Any]:
    """Returns versions, the git revision, devices, numeric settings and the time, as JSON.

    ``version`` is this package's own; what is installed may be of another one, in a checkout.
    ``git`` is ``{"revision": str, "dirty": bool}`` of the repository that holds ``zo_fl``, or None
    if it is installed otherwise or there is no git. ``started`` is UTC in ISO format.
    """
    devices = jax.devices()
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "zo_fl": version,
            **{name: _version(name) for name in _PACKAGES},
        },
        "git": _git_state(Path(__file__).parent),
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
        },
        "numerics": {
            "prng_implementation": keys.IMPLEMENTATION,
            **{name: getattr(jax.config, name) for name in _NUMERICS},
        },
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state(folder: Path) -> dict[str, Any] | None:
    """Returns revision and dirty flag if git tracks ``folder``, else None."""
    # Tracks, not contains: a virtual environment may lie in another project's repository.
    if not _git(folder, "ls-files", "--", "."):
        return None
    revision = _git(folder, "rev-parse", "HEAD")
    if not revision:
        return None
    return {"revision": revision, "dirty": bool(_git(folder, "status", "--porcelain"))}


def _git(folder: Path, *command: str) -> str | None:
    """Returns what git prints, or None if it fails or is not there."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
