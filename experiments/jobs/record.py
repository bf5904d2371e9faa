"""The files that results are read from: a sweep's ``sweep.json``, and the files of each run.

A sweep writes ``sweep.json`` as it starts. A run is read from its own folder, or from the one small
file that a campaign keeps of it.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zo_fl import config as configs
from zo_fl.config.sweeps import Sweep
from zo_fl.engine.fields import ConfigError
from zo_fl.host.files import write_json
from zo_fl.host.metrics import read_metrics

from .plan import Overrides, distinct, point_folder

_OF_RUNS = ("summary", "config", "partition")
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
        write_json(path, content)
    except OSError as error:
        raise ConfigError(
            f"cannot write to the folder {path.parent} ({error.strerror}); change --workdir"
        ) from None


def read(path: Path) -> tuple[dict[str, Any] | None, str]:
    """Returns the content of a ``sweep.json`` and what is wrong, as ``read_json``."""
    content, problem = read_json(path)
    if content is None or not _is_whole(content):
        return None, problem if content is None else "damaged"
    for one in (content, *content["points"]):
        one["overrides"] = configs.flatten(configs.named(one.get("overrides", {})))
    return content, ""


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
    if not isinstance(content.get("overrides", {}), dict):
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


def keep(folder: Path, path: Path) -> dict[str, Any]:
    """Writes what is worth keeping of a finished run's folder to one small file, and returns it.

    That is its summary, its partition, the fields that its method reads and where they come from,
    and the rows of rounds after which it was evaluated.

    Raises:
      ConfigError: the folder is damaged.
    """
    content = {}
    for name in _OF_RUNS:
        content[name], problem = read_json(folder / f"{name}.json")
        if content[name] is None:
            raise ConfigError(f"{folder / name}.json is {problem or 'missing'}; delete the folder")
    content["config"]["config"] = configs.read_by(content["config"]["config"])
    rows = read_metrics(folder / "metrics.jsonl")
    last = [row["seconds"] for row in rows if row["phase"] == rows[-1]["phase"]]
    # Of the last phase: others may be a warm-up that runs share.
    content["seconds"] = round(sum(last), 1)
    content["metrics"] = [row for row in rows if "test_accuracy" in row]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)
    return content


def of_run(folder: Path) -> dict[str, tuple[dict[str, Any] | None, str]]:
    """Returns the files of a run by name (``_OF_RUNS``), each as ``read_json`` returns it."""
    kept, problem = read_json(kept_of(folder))
    if folder.is_dir() or not (kept or problem):
        return {name: read_json(folder / f"{name}.json") for name in _OF_RUNS}
    return {name: ((kept or {}).get(name), problem) for name in _OF_RUNS}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Returns the rows of a run's metrics, as far as they are kept; none if they are damaged."""
    kept, _ = read_json(kept_of(folder))
    try:
        rows = (kept or {}).get("metrics") or read_metrics(folder / "metrics.jsonl")
    except (ConfigError, OSError):
        return []
    return [row for row in rows if isinstance(row, dict)]


def kept_of(folder: Path) -> Path:
    """Returns the file that a campaign keeps of a run."""
    return folder.with_name(f"{folder.name}.json")
