"""From a sweep to its runs: points times seeds, and the warm-ups that they share.

Points whose methods begin alike (``warm_starts.shared``) start from the same finished run of that
beginning; a shorter one is the start of a longer one.
"""

import collections
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from zo_fl import config as configs
from zo_fl import methods, models
from zo_fl.config import check, warm_starts
from zo_fl.config.sweeps import Point, Sweep
from zo_fl.engine.fields import ConfigError

Overrides = dict[str, Any]

_SET_BY_SEEDS = ("seed", "data.partition_seed")


class Job(NamedTuple):
    """One run: its name for people, its folder, its overrides, the warm-up it starts from."""

    name: str
    folder: Path
    overrides: Overrides
    after: Path | None


class Alike(NamedTuple):
    """A run that may be one program with others, those of an equal key."""

    key: str
    numbers: Overrides  # its own
    # Whether one program was measured to be faster for its model on CPUs too; convolutions with
    # weights of each run's own are slow there.
    dense: bool


def load_sweep(path: str | Path, config: ConfigDict) -> Sweep:
    """Returns the sweep of a file for a config.

    Raises:
      ConfigError: there is no such file, or it fails.
    """
    return configs.call(configs.find(path, "sweep", "sweeps"), "get_sweep", config)


def jobs_of(
    sweep: Sweep, config: ConfigDict, given: Overrides, seeds: Iterable[int], root: Path, name: str
) -> list[Job]:
    """Returns all runs of a sweep, seed by seed, each warm-up before the runs that start from it.

    Args:
      sweep: points with overrides of ``config``.
      config: the config with ``given`` in it.
      given: overrides of the command line, with which each run is started.
      seeds: each sets seed, partition and tiers of all points alike, so that they are paired.
      root: the folder of all sweeps and their warm-ups.
      name: the sweep's folder in it.

    Raises:
      ConfigError: an override of an unknown field, of the wrong type, or of what ``--seeds`` sets,
        or two points of one name.
    """
    for field in _SET_BY_SEEDS:
        if field in given:
            raise ConfigError(
                f"config.{field}={given[field]!r} was given, but a sweep sets it for each seed; "
                "use --first_seed and --seeds"
            )
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


def side_by_side(planned: Iterable[Job], config: ConfigDict) -> dict[Path, Alike]:
    """Returns the runs that may be one program with others, by folder.

    Args:
      planned: all runs.
      config: as for ``jobs_of``.
    """
    plain, found = config.to_dict(), {}
    declared = check.flat(configs.blocks())
    may_vary = [name for name, field in declared.items() if field.varies]
    for job in planned:
        resolved = _resolve(plain, job.overrides)
        parts = [methods.METHODS[part] for part in methods.parts(resolved["algorithm"])]
        read = {block for part in parts for block in part.reads}
        flat = configs.flatten(resolved)
        numbers = {name: flat[name] for name in may_vary if name.split(".")[0] in read}
        chosen = any(isinstance(number, str) for number in numbers.values())
        alone = any(part.alone(resolved) for part in parts) or resolved["run"]["data"] == "stream"
        if not (chosen or alone):
            shared = {name: value for name, value in flat.items() if name not in numbers}
            is_dense = resolved["model"]["name"] in models.DENSE
            found[job.folder] = Alike(_digest([shared, str(job.after)]), numbers, is_dense)
    return found


def suggestion(found: Mapping[Path, Alike]) -> str | None:
    """Returns a line if some runs would be quicker as one program, else None."""
    sizes = collections.Counter(one.key for one in found.values() if one.dense)
    several = [size for size in sizes.values() if size > 1]
    if not several:
        return None
    return (
        f"{sum(several)} of these runs differ from others in numbers alone; with --vmap_points "
        f"they are {len(several)} programs, quicker, but none of them can be replayed"
    )


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


def _warmups(
    config: ConfigDict, overrides: list[Overrides], seed: int, root: Path
) -> tuple[list[Job], list[Path | None]]:
    """Returns the warm-ups of some points, in an order that works, and the warm-up of each point.

    A warm-up is a run of the first part of a point's method. A method of one part starts after one
    if another point's method begins with it.
    """
    plain = config.to_dict()
    resolved = [_resolve(plain, one) for one in overrides]
    parts = [methods.parts(one["algorithm"]) for one in resolved]
    begun = {first for first, *others in parts if others}
    found: dict[Path, tuple[int, str, Overrides]] = {}
    after: list[Path | None] = []
    for one, given, (first, *_) in zip(resolved, overrides, parts, strict=True):
        rounds = warm_starts.last_rounds(one, [first])
        if first not in begun or not rounds:
            after.append(None)
            continue
        shared = warm_starts.shared(one, [first])
        # Of numbers, as in earlier versions.
        folder = root / "warmups" / _digest([configs.flatten(configs.plain(shared)), rounds])
        # Only the overrides that make the warm-up: points that differ elsewhere share it.
        blocks = {"run", "seed"} | configs.blocks_read([first])
        own = {field: value for field, value in given.items() if field.split(".")[0] in blocks}
        found.setdefault(folder, (rounds, _digest(shared), own | {"algorithm": first}))
        after.append(folder)
    jobs, longest = [], {}
    for folder, (rounds, chain, own) in sorted(found.items(), key=lambda item: item[1][0]):
        name = f"warm-up {folder.name}, {rounds} rounds, seed {seed}"
        jobs.append(Job(name, folder, own, longest.get(chain)))
        longest[chain] = folder
    return jobs, after


def _resolve(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config with dotted fields changed, every field checked."""
    try:
        return configs.resolve(configs.changed(config, overrides))
    except ConfigError as error:
        raise ConfigError(f"the sweep's overrides: {error}") from None


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "all"
