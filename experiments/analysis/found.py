"""Finds all runs in a folder: those of sweeps by their ``sweep.json``, and the others.

The others are shown as one more sweep, with a row for runs that differ in nothing but their seeds.
"""

import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from zo_fl import config as configs
from zo_fl.engine.fields import ConfigError

from .. import cli
from ..jobs import record
from . import paper
from .runs import Run, SweepRuns, read_run

PLAIN = "runs"  # name of the sweep of runs outside of sweeps
_SEEDS = ("seed", "data.partition_seed")
_MANY = 4  # fields that differ; more make no name
_MADE_BY = (
    "make runs by zo-fl --config=quickstart --workdir={0}/a, or many by zo-fl sweep "
    "--config=quickstart --sweep=splits --workdir={0}"
)

Fields = dict[str, Any]


class Found(NamedTuple):
    """All sweeps under a folder, runs outside of sweeps last, and what could not be read."""

    sweeps: list[SweepRuns]
    problems: list[str]


def read(root: str | Path) -> Found:
    """Returns all sweeps and runs under a folder; the folder may itself be one.

    Raises:
      ConfigError: there is no such folder, or nothing in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise ConfigError(
            f"no folder {str(root)!r}; change --runs to a sweep's --workdir or to runs"
        )
    sweeps, problems, taken = [], [], []
    for folder in (root, *sorted(path for path in root.iterdir() if path.is_dir())):
        path = folder / "sweep.json"
        if path.exists():
            taken.append(folder)
            content, problem = record.read(path)
            if content is None:
                problems.append(f"{path}: {problem}; run the sweep's command again")
            else:
                sweeps.append(_sweep(folder, content))
    plain, more = _plain_runs(root, taken)
    sweeps, problems = sweeps + plain, problems + more
    if not sweeps:
        looked = f"in {root} there is no sweep.json and, three folders deep, no run's config.json"
        raise ConfigError("; ".join([*(problems or [looked]), _MADE_BY.format(root)]))
    return Found(sweeps, problems)


def command_of(sweep: SweepRuns, run: Run) -> str:
    """Returns the command that repeats a run, a warm-up that it shared included."""
    if sweep.is_plain():
        defaults = configs.flatten(configs.default().to_dict())
        config, changes = "base", {}
        for field, value in fields_read(run.config).items():
            if field not in defaults or cli.as_text(defaults[field]) != cli.as_text(value):
                changes[field] = value
    else:
        of_point = {(one["row"], one["column"]): one for one in sweep.record["points"]}
        config, changes = sweep.record["config"], dict(sweep.record.get("overrides", {}))
        changes |= of_point[run.row, run.column]["overrides"] | dict.fromkeys(_SEEDS, run.seed)
    flags = [f"--config.{field}={cli.as_text(value)}" for field, value in changes.items()]
    return cli.as_called(shlex.join(["zo-fl", f"--config={config}", *flags]))


def fields_read(config: Mapping[str, Any]) -> Fields:
    """Returns the fields of a config that its algorithm reads, by dotted name."""
    kept = {"algorithm", "seed", "run"} | paper.blocks_read(str(config.get("algorithm")))
    return configs.flatten({name: value for name, value in config.items() if name in kept})


def _sweep(folder: Path, content: dict[str, Any]) -> SweepRuns:
    points, seeds = content["points"], content["seeds"]
    runs = [
        read_run(folder / point["folder"] / str(seed), point["row"], point["column"], seed)
        for point in points
        for seed in seeds
    ]
    rows = list(dict.fromkeys(point["row"] for point in points))
    columns = list(dict.fromkeys(point["column"] for point in points))
    return SweepRuns(folder.resolve().name, folder, content, rows, columns, runs)


def _plain_runs(root: Path, taken: Iterable[Path]) -> tuple[list[SweepRuns], list[str]]:
    """Returns the runs up to three folders deep as a sweep, and a line for each problem.

    Args:
      root: the folder, or a run's own.
      taken: folders of sweeps, whose runs are theirs.
    """
    # By default a run is in runs/NAME/TIME, and one of several seeds a folder deeper.
    paths = (path for depth in range(4) for path in root.glob("*/" * depth + "config.json"))
    folders = sorted(path.parent for path in paths)
    others = {*taken, root / "warmups"}  # a sweep's warm-ups are shown as part of its runs
    found = [read_run(path, "", "", "") for path in folders if not others & {path, *path.parents}]
    problems = [f"{run.folder}: {run.problem}" for run in found if not run.config]
    kept, repeated = _distinct([run for run in found if run.config])
    if not kept:
        return [], problems
    groups = _groups(kept, root)
    runs = [
        run._replace(row=row, seed=_seed(run.config))
        for row, group in groups.items()
        for run in group
    ]
    content = {"title": f"Runs in {root.resolve().name}", "quantity": "accuracy"}
    content |= {"table": "", "reference": "", "command": ""}
    return [SweepRuns(PLAIN, root, content, list(groups), [""], runs)], problems + repeated


def _distinct(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    """Returns the runs without repetitions, which are no further sample, and a line for each."""
    first: dict[str, Run] = {}
    lines = []
    for run in sorted(runs, key=lambda run: bool(run.problem)):  # finished ones first
        key = json.dumps(fields_read(run.config), sort_keys=True)
        if first.setdefault(key, run) is not run:
            lines.append(f"{run.folder}: repeats {first[key].folder}, seeds too; left out")
    return sorted(first.values(), key=lambda run: run.folder), lines


def _groups(runs: Iterable[Run], root: Path) -> dict[str, list[Run]]:
    """Returns runs that differ in their seeds alone, by the name of their row."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        fields = {k: v for k, v in fields_read(run.config).items() if k not in _SEEDS}
        groups.setdefault(json.dumps(fields, sort_keys=True), []).append(run)
    names = _names([json.loads(key) for key in groups])
    named = {}
    for name, group in zip(names, groups.values(), strict=True):
        # No name if too much differs, or a field that only one version of this package has.
        folder = str(group[0].folder.relative_to(root))
        named[folder if not name or names.count(name) > 1 else name] = group
    return named


def _names(groups: list[Fields]) -> list[str]:
    """Returns for each group the fields in which groups differ, "" where these are many."""
    if len(groups) == 1:
        return [str(groups[0].get("algorithm"))]
    values: dict[str, set[str]] = {}
    for fields in groups:
        for field, value in fields.items():
            values.setdefault(field, set()).add(json.dumps(value))
    names = []
    for fields in groups:
        own = [field for field, found in values.items() if len(found) > 1 and field in fields]
        shown = [str(fields[f]) if f == "algorithm" else f"{f}={fields[f]}" for f in own]
        names.append(", ".join(shown) if len(shown) <= _MANY else "")
    return names


def _seed(config: Mapping[str, Any]) -> str:
    seed, partition = (fields_read(config).get(field) for field in _SEEDS)
    return f"{seed}" if seed == partition else f"{seed}, partition {partition}"
