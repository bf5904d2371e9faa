"""The folder of a run: its config and provenance, its summary, and whether it may be resumed."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zo_fl.core.errors import ConfigError


def write_json(path: Path, content: Any) -> None:
    """Writes ``content`` as indented JSON, whole or not at all."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file, or None if there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def check(path: Path, config: Mapping[str, Any]) -> None:
    """Checks that a folder is free, or holds a run of the same config.

    Raises:
      ConfigError: it holds a run of another config; names the first field that differs.
    """
    earlier = read_json(path / "config.json")
    if earlier is None:
        return
    old, new = flatten(earlier["config"]), flatten(json.loads(json.dumps(config)))
    for field in sorted(old.keys() | new.keys()):
        if old.get(field) != new.get(field):
            raise ConfigError(
                f"{path} holds a run with config.{field}={old.get(field)!r}, given "
                f"{new.get(field)!r}; only the same config resumes: change it back, or --workdir"
            )


def create(
    path: Path,
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
    partition: Mapping[str, Any],
) -> None:
    """Makes the folder with ``config.json`` and ``partition.json``; leaves existing ones alone.

    Raises:
      ConfigError: the folder cannot be made.
    """
    if (path / "config.json").exists():
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / "partition.json", partition)
        write_json(path / "config.json", {"config": config, "provenance": provenance})
    except OSError as error:
        raise ConfigError(
            f"cannot write to the folder {path} ({error.strerror}); change --workdir"
        ) from None


def wait_until_seen(path: Path, seconds: float = 60.0) -> None:
    """Waits for what another process has created: a network file system may show it late.

    Raises:
      ConfigError: it does not show.
    """
    deadline = time.monotonic() + seconds
    while not (path / "config.json").exists():
        if time.monotonic() > deadline:
            raise ConfigError(
                f"the first process made {path.absolute()} and it is not seen here; all "
                "processes must share its file system; change --workdir"
            )
        time.sleep(0.1)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested dicts as one dict of dotted names."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
