"""``sweep.json``: the sweep itself, written at its start, read by all that shows results."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zo_fl.config.sweeps import Sweep
from zo_fl.engine.errors import ConfigError
from zo_fl.host import files

from .plan import Overrides, distinct, point_folder

_TEXTS = ("title", "table", "reference", "quantity", "config", "command")


def make(
    sweep: Sweep, config_file: str, given: Overrides, command: str, seeds: Iterable[int]
) -> dict[str, Any]:
    """Returns the content of ``sweep.json``."""
    points = [point._asdict() | {"folder": point_folder(point)} for point in distinct(sweep.points)]
    made = {"config": config_file, "overrides": dict(given), "command": command}
    return sweep._asdict() | made | {"seeds": list(seeds), "points": points}


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes a ``sweep.json``; an earlier one of the same command is extended.

    Raises:
      ConfigError: the folder holds a sweep of another config, or cannot be written.
    """
    earlier, _ = read(path)
    try:
        if earlier:  # a damaged one is lost: the command says it all
            content = _extend(path, earlier, json.loads(json.dumps(content)))
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, content)
    except OSError as error:
        raise ConfigError(
            f"cannot write to the folder {path.parent} ({error.strerror}); change --workdir"
        ) from None


def read(path: Path) -> tuple[dict[str, Any] | None, str]:
    """Returns the content of a ``sweep.json`` and what is wrong, as ``read_json``."""
    content, problem = read_json(path)
    return (content, problem) if content is None or _is_whole(content) else (None, "damaged")


def read_json(path: Path) -> tuple[dict[str, Any] | None, str]:
    """Returns (content, ""), (None, "") if there is no file, or (None, what is wrong)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, ""
    except (ValueError, OSError):
        return None, "damaged"
    return (content, "") if isinstance(content, dict) else (None, "damaged")


def _is_whole(content: dict[str, Any]) -> bool:
    points, seeds = content.get("points"), content.get("seeds")
    if not isinstance(points, list) or not isinstance(seeds, list):
        return False
    texts = [content.get(name) for name in _TEXTS]
    for point in points:
        if not isinstance(point, dict) or not isinstance(point.get("overrides"), dict):
            return False
        texts += [point.get(name) for name in ("row", "column", "folder")]
    return all(isinstance(t, str) for t in texts) and all(isinstance(s, int) for s in seeds)


def _extend(path: Path, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    for field, flag in {"config": "--config", "overrides": "--config.FIELD"}.items():
        if old.get(field) != new[field]:
            raise ConfigError(
                f"{path} was made with {flag} {old.get(field)!r}, given {new[field]!r}; "
                "change it back, or --workdir"
            )
    points = {point["folder"]: point for point in new["points"]}
    for point in old["points"]:
        if points.setdefault(point["folder"], point)["overrides"] != point["overrides"]:
            raise ConfigError(
                f"{path} has other overrides for {point['row']!r}, {point['column']!r}; "
                "change --workdir"
            )
    seeds = sorted(set(old["seeds"]) | set(new["seeds"]))
    return new | {"points": list(points.values()), "seeds": seeds}
