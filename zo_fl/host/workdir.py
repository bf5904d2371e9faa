"""The folder of a run: its config and provenance, its summary, and whether it may be resumed."""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from zo_fl.engine.errors import ConfigError
from zo_fl.host.files import write_whole

CONFIG, SUMMARY = "config.json", "summary.json"
_OF_A_RUN = ("metrics.jsonl", "checkpoints", SUMMARY, "ledger.msgpack")
_OF_A_START = ("started", "after_round")
# What every version of summary.json has.
_SUMMARY = ("rounds", "diverged_round", "final_accuracy", "uplink_bytes", "wall_seconds")


def write_json(path: Path, content: Any) -> None:
    """Writes ``content`` as indented JSON, whole or not at all; what JSON lacks, NaN, as null.

    Raises:
      StorageError: it cannot be written.
    """
    write_whole(path, json.dumps(_standard(content), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file, or None if there is none.

    Raises:
      ConfigError: it is damaged.
    """
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise ConfigError(
            f"{path} is damaged: not JSON; mend it, or choose another folder"
        ) from None


def read_object(path: Path, names: Iterable[str]) -> dict[str, Any] | None:
    """Returns the content of a JSON file that must have some names, or None if there is no file.

    Raises:
      ConfigError: it is damaged.
    """
    content = read_json(path)
    if content is None and not path.exists():
        return None
    found = content if isinstance(content, dict) else {}
    missing = next((name for name in names if name not in found), None)
    if missing is not None:
        raise ConfigError(f"{path} is damaged: no {missing}; mend it, or choose another folder")
    return content


def finished(folder: Path) -> dict[str, Any] | None:
    """Returns the summary of a finished run, or None if there is none.

    Raises:
      ConfigError: it is damaged.
    """
    summary = read_object(folder / SUMMARY, _SUMMARY)
    if summary is not None and type(summary["rounds"]) is not int:
        raise ConfigError(
            f"{folder / SUMMARY} is damaged: rounds is {summary['rounds']!r}; mend it, or choose "
            "another folder"
        )
    return summary


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
    earlier = read_object(path / CONFIG, ("config",))
    if earlier is None:
        left = next((name for name in _OF_A_RUN if (path / name).exists()), None)
        if left is not None:
            raise ConfigError(
                f"{path} has a run's {left} and no {CONFIG}, without which nobody knows whose it "
                "is; bring it back, or change --workdir"
            )
        return
    try:
        old = identity(earlier["config"])
    except (ConfigError, TypeError, AttributeError, KeyError) as error:  # or of a damaged one
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
    if (path / CONFIG).exists():
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / "partition.json", partition)
        write_json(path / CONFIG, made)
    except OSError as error:
        raise ConfigError(
            f"cannot write to the folder {path} ({error.strerror}); change --workdir"
        ) from None


def note_stretch(path: Path, done: int, made_by: Mapping[str, Any]) -> None:
    """Notes in ``config.json`` with what a run goes on, if that is not what it was made with.

    Args:
      path: the run's folder.
      done: rounds before.
      made_by: see ``provenance``.

    Raises:
      StorageError: it cannot be written.
    """
    content = read_json(path / CONFIG)
    stretches = content.get("stretches", [])
    before = stretches[-1] if stretches else content.get("provenance") or {}
    # As it would be read again: tuples are lists there.
    now = json.loads(json.dumps(dict(made_by)))
    if {k: v for k, v in before.items() if k not in _OF_A_START} == {
        k: v for k, v in now.items() if k not in _OF_A_START
    }:
        return
    content["stretches"] = [*stretches, {"after_round": done, **now}]
    write_json(path / CONFIG, content)


def wait_until_seen(path: Path, seconds: float = 60.0) -> None:
    """Waits for what another process has created: a network file system may show it late.

    Raises:
      ConfigError: it does not show.
    """
    deadline = time.monotonic() + seconds
    while not (path / CONFIG).exists():
        if time.monotonic() > deadline:
            raise ConfigError(
                f"the first process made {path.absolute()} and it is not seen here; all "
                "processes must share its file system; change --workdir"
            )
        time.sleep(0.1)


def _standard(content: Any) -> Any:
    """Returns what JSON can say of it: of a float that is not finite, nothing."""
    if isinstance(content, Mapping):
        return {name: _standard(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_standard(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
