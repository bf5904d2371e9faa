"""From a sweep to the runs it takes: points times seeds, and the warm-ups that they share.

A warm-up is given by the blocks data, model, warmup and run and by the seed. Points with the same
one start from the same finished run of ``algorithm=fedavg``; a shorter warm-up is the start of a
longer one.
"""

import copy
import difflib
import hashlib
import json
import re
import runpy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs.sweeps.common import Point, Sweep
from zo_fl.core.errors import ConfigError

Overrides = dict[str, Any]

_SHARED = ("data", "model", "warmup", "run", "seed")
_SET_BY_SEEDS = ("seed", "data.partition_seed")


class Job(NamedTuple):
    """One run: its name for people, its folder, its overrides, the warm-up it starts from."""

    name: str
    folder: Path
    overrides: Overrides
    after: Path | None


def load_sweep(path: str | Path, config: ConfigDict) -> Sweep:
    """Returns the sweep of a file for a config.

    Raises:
      ConfigError: there is no such file, or it fails.
    """
    path = Path(path)
    if not path.is_file():
        found = sorted(p.stem for p in Path("configs/sweeps").glob("*.py"))
        names = ", ".join(name for name in found if name not in ("common", "__init__"))
        hint = (
            f"in configs/sweeps there are: {names}" if names else "run from the repository's root"
        )
        raise ConfigError(f"no sweep file {str(path)!r}; {hint}; change --sweep")
    try:
        return runpy.run_path(str(path))["get_sweep"](config)
    except Exception as error:  # of a user's file: anything
        line = str(error).splitlines()[0] if str(error) else ""
        raise ConfigError(f"{path}: {type(error).__name__}: {line}") from error


def check_given(given: Mapping[str, Any]) -> None:
    """Checks that the command line does not set what --seeds sets.

    Raises:
      ConfigError: it does.
    """
    for field in _SET_BY_SEEDS:
        if field in given:
            raise ConfigError(
                f"config.{field}={given[field]!r} was given, but a sweep sets it for each seed; "
                "use --first_seed and --seeds"
            )


def plan(
    sweep: Sweep, config: ConfigDict, given: Overrides, seeds: Iterable[int], root: Path, name: str
) -> list[Job]:
    """Returns all runs of a sweep, a warm-up before what starts from it, seed by seed.

    Args:
      sweep: points with overrides of ``config``.
      config: resolved; ``given`` is in it already.
      given: overrides of the command line, which each run is started with.
      seeds: each sets seed, partition and tiers of all points alike, so that they are paired.
      root: the folder of all sweeps and their warm-ups.
      name: the sweep's folder in it.

    Raises:
      ConfigError: an override of an unknown field or of the wrong type, or two points of one name.
    """
    points = distinct(sweep.points)
    jobs = []
    for seed in seeds:
        paired = dict.fromkeys(_SET_BY_SEEDS, seed)
        overrides = [given | point.overrides | paired for point in points]
        warmups, after = _warmups(config, overrides, seed, root)
        jobs += warmups
        jobs += [
            Job(
                f"{point.row}, {point.column}, seed {seed}",
                root / name / point_folder(point) / str(seed),
                overrides[i],
                after[i],
            )
            for i, point in enumerate(points)
        ]
    return jobs


def distinct(points: Iterable[Point]) -> list[Point]:
    """Returns the points without repetitions; fails where two share a folder but nothing else."""
    found: dict[str, Point] = {}
    for point in points:
        other = found.setdefault(point_folder(point), point)
        if other != point:
            raise ConfigError(
                f"the points {other.row!r}, {other.column!r} and {point.row!r}, {point.column!r} "
                "have the same folder; change a row or column of the sweep"
            )
    return list(found.values())


def point_folder(point: Point) -> str:
    """Returns the name of a point's folder, ``zowarmup--10-90``."""
    return f"{_slug(point.row)}--{_slug(point.column)}"


def resolve(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """Returns a copy of a config with dotted fields changed.

    Raises:
      ConfigError: a field is unknown, or a value has the wrong type.
    """
    known = list(_dotted(config.to_dict()))
    made = copy.deepcopy(config)
    for field, value in overrides.items():
        if field not in known:
            near = difflib.get_close_matches(field, known, n=3, cutoff=0.5)
            hint = f"; did you mean {', '.join(near)}?" if near else "; see configs/base.py"
            raise ConfigError(f"unknown field config.{field} in the sweep's overrides{hint}")
        try:
            made.update_from_flattened_dict({field: value})
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"config.{field}={value!r} in the sweep's overrides: {error}"
            ) from None
    return made


def _warmups(
    config: ConfigDict, overrides: list[Overrides], seed: int, root: Path
) -> tuple[list[Job], list[Path | None]]:
    """Returns the warm-ups of some points, in the order they can run, and each point's own."""
    found: dict[Path, tuple[int, str, Overrides]] = {}
    after: list[Path | None] = []
    for one in overrides:
        resolved = resolve(config, one).to_dict()
        if not _has_warmup(resolved):
            after.append(None)
            continue
        shared = {name: resolved[name] for name in _SHARED}
        folder = root / "warmups" / _digest(shared)
        rounds = shared["warmup"].pop("num_rounds")
        # Only what makes the warm-up: points that differ elsewhere share it.
        own = {field: value for field, value in one.items() if field.split(".")[0] in _SHARED}
        found.setdefault(folder, (rounds, _digest(shared), own | {"algorithm": "fedavg"}))
        after.append(folder)
    jobs, longest = [], {}
    for folder, (rounds, chain, own) in sorted(found.items(), key=lambda item: item[1][0]):
        name = f"warm-up {folder.name}, {rounds} rounds, seed {seed}"
        jobs.append(Job(name, folder, own, longest.get(chain)))
        longest[chain] = folder
    return jobs, after


def _has_warmup(resolved: Mapping[str, Any]) -> bool:
    first = resolved["algorithm"].split("+")[0]
    return first in ("zowarmup", "fedavg") and resolved["warmup"]["num_rounds"] > 0


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "all"


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield prefix + name
