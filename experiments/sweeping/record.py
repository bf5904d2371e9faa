"""``sweep.json``: what a sweep is, written at its start, read by all that shows results."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zo_fl.config.sweeps import Sweep
from zo_fl.engine.errors import ConfigError
from zo_fl.host import workdir

from .jobs import Overrides, distinct, point_folder


def make(
    sweep: Sweep, config_file: str, given: Overrides, command: str, seeds: Iterable[int]
) -> dict[str, Any]:
    """Returns the content of ``sweep.json``."""
    return {
        "title": sweep.title,
        "table": sweep.table,
        "reference": sweep.reference,
        "quantity": sweep.quantity,
        "axis": sweep.axis,
        "config": config_file,
        "overrides": dict(given),
        "command": command,
        "seeds": list(seeds),
        "points": [
            {
                "row": point.row,
                "column": point.column,
                "overrides": point.overrides,
                "folder": point_folder(point),
            }
            for point in distinct(sweep.points)
        ],
    }


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes a ``sweep.json``; an earlier one of the same command is extended.

    Raises:
      ConfigError: the folder holds a sweep of another config, or cannot be written.
    """
    earlier, _ = read_json(path)
    try:
        # Of a damaged one nothing is lost: the command says it all.
        if earlier and not problem(earlier):
            content = _extend(path, earlier, json.loads(json.dumps(content)))
        path.parent.mkdir(parents=True, exist_ok=True)
        workdir.write_json(path, content)
    except OSError as error:
        raise ConfigError(
            f"cannot write to the folder {path.parent} ({error.strerror}); change --workdir"
        ) from None


def problem(content: Any) -> str:
    """Returns what a sweep.json lacks, or nothing."""
    texts = ("title", "table", "reference", "quantity", "config", "command")
    if not isinstance(content, dict):
        return "damaged"
    missing = [name for name in texts if not isinstance(content.get(name), str)]
    missing += [name for name in ("seeds", "points") if not isinstance(content.get(name), list)]
    if missing:
        return f"{missing[0]} is missing"
    if not all(isinstance(seed, int) for seed in content["seeds"]):
        return "a seed is no integer"
    return "" if all(map(_is_point, content["points"])) else "a point is damaged"


def read_json(path: Path) -> tuple[dict[str, Any] | None, str]:
    """Returns (content, ""), (None, "") if there is no file, or (None, what is wrong)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, ""
    except (ValueError, OSError):
        return None, "damaged"
    return (content, "") if isinstance(content, dict) else (None, "damaged")


def _is_point(point: Any) -> bool:
    if not isinstance(point, dict) or not isinstance(point.get("overrides"), dict):
        return False
    return all(isinstance(point.get(name), str) for name in ("row", "column", "folder"))


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
