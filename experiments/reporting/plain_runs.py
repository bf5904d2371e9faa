"""Runs that no sweep knows of: a row for those that differ in nothing but their seeds."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zo_fl import config as configs

from . import paper
from .runs import Run, SweepRuns, read_run

NAME = "runs"
_SEEDS = ("seed", "data.partition_seed")
_MANY = 4  # fields that differ; more make no name

Fields = dict[str, Any]


def read(root: Path, taken: Iterable[Path]) -> tuple[list[SweepRuns], list[str]]:
    """Returns the runs in a folder, up to three folders deep, as a sweep, and what is wrong.

    Args:
      root: the folder, or a run's own.
      taken: folders of sweeps, whose runs are theirs.
    """
    # By default a run is in runs/NAME/TIME, of several seeds each in a folder of its own.
    paths = (path for depth in range(4) for path in root.glob("*/" * depth + "config.json"))
    folders = sorted(path.parent for path in paths)
    owners = {*taken, root / "warmups"}  # shared by a sweep's runs, shown as part of them
    found = [read_run(path, "", "", "") for path in folders if not owners & {path, *path.parents}]
    problems = [f"{run.folder}: {run.problem}" for run in found if not run.config]
    kept, twice = _distinct([run for run in found if run.config])
    if not kept:
        return [], problems
    rows, runs = [], []
    for row, group in _groups(kept, root).items():
        rows.append(row)
        runs += [run._replace(row=row, seed=_seed(run.config)) for run in group]
    content = {"title": f"Runs in {root.resolve().name}", "quantity": "accuracy"}
    content |= {"table": "", "reference": "", "command": ""}
    return [SweepRuns(NAME, root, content, rows, [""], runs)], problems + twice


def fields_read(config: Mapping[str, Any]) -> Fields:
    """Returns a config's fields by dotted name, without blocks that its algorithm does not read."""
    algorithm = str(config.get("algorithm"))
    kept = {"algorithm", "seed", "run"} | paper.blocks_read(algorithm)
    return configs.flatten({name: value for name, value in config.items() if name in kept})


def is_plain(sweep: SweepRuns) -> bool:
    """Returns whether these are runs without a sweep."""
    return "points" not in sweep.record


def _distinct(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    """Returns the runs without repetitions, which are no further sample, and a line for each."""
    first: dict[str, Run] = {}
    lines = []
    # What is finished counts before what is not.
    for run in sorted(runs, key=lambda run: bool(run.problem)):
        key = json.dumps(fields_read(run.config), sort_keys=True)
        if first.setdefault(key, run) is not run:
            lines.append(f"{run.folder}: repeats {first[key].folder}, seeds too; left out")
    return sorted(first.values(), key=lambda run: run.folder), lines


def _groups(runs: Iterable[Run], root: Path) -> dict[str, list[Run]]:
    """Returns the runs by the name of their row."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        fields = {k: v for k, v in fields_read(run.config).items() if k not in _SEEDS}
        groups.setdefault(json.dumps(fields, sort_keys=True), []).append(run)
    names = _names([json.loads(key) for key in groups])
    named = {}
    for name, group in zip(names, groups.values(), strict=True):
        # Too much differs, or a field that only one of two versions of this package has.
        folder = str(group[0].folder.relative_to(root))
        named[folder if not name or names.count(name) > 1 else name] = group
    return named


def _names(groups: list[Fields]) -> list[str]:
    """Returns for each group the fields that others have otherwise, "" where these are many."""
    values: dict[str, set[str]] = {}
    for fields in groups:
        for field, value in fields.items():
            values.setdefault(field, set()).add(json.dumps(value))
    differing = [field for field, found in values.items() if len(found) > 1]
    if len(groups) == 1:
        return [str(groups[0].get("algorithm"))]
    own = [[field for field in differing if field in fields] for fields in groups]
    return [
        ", ".join(_shown(field, fields[field]) for field in kept) if len(kept) <= _MANY else ""
        for fields, kept in zip(groups, own, strict=True)
    ]


def _shown(field: str, value: Any) -> str:
    return str(value) if field == "algorithm" else f"{field}={value}"


def _seed(config: Mapping[str, Any]) -> str:
    fields = fields_read(config)
    seed, partition = (fields.get(field) for field in _SEEDS)
    return f"{seed}" if seed == partition else f"{seed}, partition {partition}"
