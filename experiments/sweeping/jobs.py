"""From a sweep to the runs it takes: points times seeds, and the warm-ups that they share.

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
from zo_fl import methods as algorithms
from zo_fl.config import warm_starts
from zo_fl.config.sweeps import Point, Sweep
from zo_fl.engine import fields
from zo_fl.engine.errors import ConfigError

Overrides = dict[str, Any]

_SET_BY_SEEDS = ("seed", "data.partition_seed")


class Job(NamedTuple):
    """One run: its name for people, its folder, its overrides, the warm-up it starts from."""

    name: str
    folder: Path
    overrides: Overrides
    after: Path | None


class Alike(NamedTuple):
    """What a run that may be one program with others shares with them, and what is its own.

    Attributes:
      key: alike for those.
      numbers: dotted field -> value.
      dense: its model is such that one program of several runs was measured to be faster on CPUs
        too, where convolutions with weights of each run's own are slow.
    """

    key: str
    numbers: Overrides
    dense: bool


def load_sweep(path: str | Path, config: ConfigDict) -> Sweep:
    """Returns the sweep of a file for a config.

    Raises:
      ConfigError: there is no such file, or it fails.
    """
    found = configs.find(path, "sweep", "sweeps")
    return configs.call(found, "get_sweep", config)


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


def side_by_side(planned: Iterable[Job], config: ConfigDict) -> dict[Path, Alike]:
    """Returns the runs that may be one program with others, by folder.

    Those that end by themselves, or keep features, are left out.

    Args:
      planned: all runs.
      config: as for ``plan``.
    """
    plain, found = config.to_dict(), {}
    may = [name for name, one in fields.flat(configs.blocks()).items() if one.varies]
    for job in planned:
        resolved = _resolve(plain, job.overrides)
        parts = algorithms.parts(resolved["algorithm"])
        read = {block for part in parts for block in algorithms.blocks_of(part)}
        options = [resolved[block] for block in sorted(read)]
        # A warm-up is watched unless it is fixed, other methods have checks unless they have none.
        ends = any(
            one.get("stop", one.get("check_every")) not in (None, 0, "fixed") for one in options
        )
        keeps = any(one.get("cache") for one in options) or resolved["run"]["data"] == "stream"
        flat = configs.flatten(resolved)
        numbers = {name: flat[name] for name in may if name.split(".")[0] in read}
        best = any(name.endswith(".eps") and not value for name, value in numbers.items())
        if not (ends or keeps or best):
            shared = {name: value for name, value in flat.items() if name not in numbers}
            is_dense = resolved["model"]["name"] == "mlp"
            found[job.folder] = Alike(_digest([shared, str(job.after)]), numbers, is_dense)
    return found


def suggestion(found: Mapping[Path, Alike]) -> str | None:
    """Returns what to say where some runs would be quicker as one program, None if none would."""
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
    """Returns the warm-ups of some points, in the order they can run, and each point's own.

    A warm-up is a run of the first part of a point's method. A method of one part starts after one
    if another point's method begins with it.
    """
    plain = config.to_dict()
    resolved = [_resolve(plain, one) for one in overrides]
    parts = [algorithms.parts(one["algorithm"]) for one in resolved]
    begun = {first for first, *others in parts if others}
    found: dict[Path, tuple[int, str, Overrides]] = {}
    after: list[Path | None] = []
    for one, given, (first, *_) in zip(resolved, overrides, parts, strict=True):
        rounds = warm_starts.last_rounds(one, [first])
        if first not in begun or not rounds:
            after.append(None)
            continue
        shared = warm_starts.shared(one, [first])
        folder = root / "warmups" / _digest([shared, rounds])
        # Only what makes the warm-up: points that differ elsewhere share it.
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
    """Returns a config with dotted fields changed, all of it checked."""
    try:
        return configs.resolve(configs.changed(config, overrides))
    except ConfigError as error:
        raise ConfigError(f"the sweep's overrides: {error}") from None


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "all"
