"""The folder of a run: its config and provenance, its summary, and whether it may be resumed."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zo_fl.core.errors import ConfigError
from zo_fl.host.files import write_whole


def write_json(path: Path, content: Any) -> None:
    """Writes ``content`` as indented JSON, whole or not at all."""
    write_whole(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file, or None if there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def check(
    path: Path,
    identity: Callable[[Mapping[str, Any]], dict[str, Any]],
    config: Mapping[str, Any],
    model: str | None = None,
) -> None:
    """Checks that a folder is free, or holds a run of the same config.

    Args:
      path: the folder.
      identity: what of a config makes the run, by dotted names.
      config: resolved.
      model: the user's own, in words.

    Raises:
      ConfigError: it holds a run of another config or model; says what differs first.
    """
    earlier = read_json(path / "config.json")
    if earlier is None:
        return
    try:
        old = identity(earlier["config"])
    except ConfigError as error:
        raise ConfigError(
            f"{path} holds a run of another version of this program ({error}); change --workdir"
        ) from None
    if earlier.get("model") != model:
        raise ConfigError(
            f"{path} holds a run with the model {earlier.get('model') or 'of the config'}, given "
            f"{model or 'that of the config'}; only the same model resumes: change it back, or "
            "--workdir"
        )
    new = identity(config)
    for field in sorted(old.keys() | new.keys()):
        if old.get(field) != new.get(field):
            raise ConfigError(
                f"{path} holds a run with config.{field}={old.get(field)!r}, given "
                f"{new.get(field)!r}; only the same config resumes: change it back, or --workdir"
            )


def create(path: Path, made: Mapping[str, Any], partition: Mapping[str, Any]) -> None:
    """Makes the folder with ``config.json`` and ``partition.json``; leaves existing ones alone.

    Raises:
      ConfigError: the folder cannot be made.
    """
    if (path / "config.json").exists():
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / "partition.json", partition)
        write_json(path / "config.json", made)
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
