"""Reads the folders of sweeps and their runs, for tables, plots and the report.

Reading never fails: what is missing, unfinished or damaged is said, and the rest is returned.
"""

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from zo_fl.config import flatten
from zo_fl.core.errors import ConfigError
from zo_fl.host.metrics import read_metrics

from ..sweeping import record

FINISHED, UNFINISHED, MISSING, DAMAGED = "finished", "unfinished", "missing", "damaged"
_SEEDS = ("seed", "data.partition_seed")
_NOT_SWEEPS = ("warmups", "tables", "plots")


class Run(NamedTuple):
    """One seed of one point. ``problem`` says in words why it is not finished."""

    row: str
    column: str
    seed: int
    folder: Path
    state: str
    problem: str
    summary: dict[str, Any]
    config: dict[str, Any]
    provenance: dict[str, Any]
    num_classes: int | None


class SweepRuns(NamedTuple):
    """A sweep and all its runs, also those that are missing."""

    name: str
    folder: Path
    record: dict[str, Any]
    rows: list[str]
    columns: list[str]
    runs: list[Run]

    def of(self, row: str, column: str) -> list[Run]:
        """Returns the runs of a point, by seed."""
        return [run for run in self.runs if (run.row, run.column) == (row, column)]


class Found(NamedTuple):
    """All sweeps under a folder, and what could not be read at all."""

    sweeps: list[SweepRuns]
    problems: list[str]


def read(root: str | Path) -> Found:
    """Returns all sweeps under a folder, or the one it holds; else its plain runs as one.

    Raises:
      ConfigError: there is no such folder, or nothing in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise ConfigError(
            f"no folder {str(root)!r}; change --runs to the --workdir of experiments.sweep"
        )
    sweeps, problems = [], []
    folders = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
    for folder in folders:
        path = folder / "sweep.json"
        if path.exists():
            content, problem = record.read_json(path)
            problem = problem or record.problem(content)
            if problem or content is None:
                problems.append(f"{path}: {problem}; run the sweep's command again")
            else:
                sweeps.append(_read_sweep(folder, content))
        elif folder.name not in _NOT_SWEEPS and any(folder.glob("*--*/*/config.json")):
            problems.append(f"{folder}: runs without sweep.json; run the sweep's command again")
    if not sweeps and not problems:
        sweeps = _plain(root)
    if not sweeps and not problems:
        raise ConfigError(
            f"nothing in {str(root)!r}: no sweep.json and no run's config.json; change --runs to "
            "the --workdir of experiments.sweep, or to a folder of runs of experiments.main"
        )
    return Found(sweeps, problems)


def rows_of(run: Run) -> list[dict[str, Any]]:
    """Returns the rows of a run's ``metrics.jsonl``; none of a damaged one."""
    try:
        return [row for row in read_metrics(run.folder / "metrics.jsonl") if isinstance(row, dict)]
    except (ConfigError, OSError):
        return []


def seconds_a_round(run: Run) -> float | None:
    """Returns the median seconds of a round of the last phase; None if it was not timed."""
    rows = rows_of(run)
    timed = [row.get("seconds") for row in rows if row.get("phase") == rows[-1].get("phase")]
    seconds = [value for value in timed if isinstance(value, int | float)]
    return statistics.median(seconds) if seconds else None


def dotted(config: Mapping[str, Any], field: str) -> Any:
    """Returns the value of a dotted field, None if there is none."""
    value: Any = config
    for name in field.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def unfinished(sweep: SweepRuns) -> list[str]:
    """Returns a line for each run that is missing, unfinished or damaged."""
    return [
        f"{run.row}, {run.column}, seed {run.seed}: {run.problem}"
        for run in sweep.runs
        if run.state != FINISHED
    ]


def finished(runs: Iterable[Run]) -> list[Run]:
    """Returns the runs that are finished."""
    return [run for run in runs if run.state == FINISHED]


def define_flags(out: str) -> None:
    """Defines --runs and --out of the commands that show results.

    Args:
      out: default of --out, in the folder --runs.
    """
    flags.DEFINE_string("runs", None, "Folder of the sweeps: --workdir of experiments.sweep.")
    flags.DEFINE_string("out", None, f"Where to write to. Default: RUNS/{out}.")


def given_folders(default_out: str) -> tuple[Path, Path]:
    """Returns --runs and --out.

    Raises:
      ConfigError: there is no --runs.
    """
    if not flags.FLAGS["runs"].value:
        raise ConfigError("no --runs given; pass the --workdir of experiments.sweep")
    root = Path(flags.FLAGS["runs"].value)
    return root, Path(flags.FLAGS["out"].value or root / default_out)


def _read_sweep(folder: Path, content: dict[str, Any]) -> SweepRuns:
    points, seeds = content["points"], content["seeds"]
    runs = [
        read_run(folder / point["folder"] / str(seed), point["row"], point["column"], seed)
        for point in points
        for seed in seeds
    ]
    rows = list(dict.fromkeys(point["row"] for point in points))
    columns = list(dict.fromkeys(point["column"] for point in points))
    return SweepRuns(folder.resolve().name, folder, content, rows, columns, runs)


def _plain(root: Path) -> list[SweepRuns]:
    """Returns the runs of a folder that no sweep made, as a sweep; none if there are none.

    What their configs differ in, but for seeds, makes the rows.
    """
    folders = sorted(
        {path.parent for depth in ("", "*/", "*/*/") for path in root.glob(f"{depth}config.json")}
    )
    if not folders:
        return []
    found = [read_run(folder, "", "", 0) for folder in folders]
    flat = [flatten(run.config) for run in found]
    fields = sorted({field for one in flat for field in one} - set(_SEEDS))
    differ = [field for field in fields if len({str(one.get(field)) for one in flat}) > 1]
    runs, taken = [], set()
    for run, one in zip(found, flat, strict=True):
        row = ", ".join(f"{field}={one.get(field)}" for field in differ) or "all"
        seed = one.get("seed")
        seed = seed if isinstance(seed, int) else 0
        while (row, seed) in taken:  # the same run twice: another row
            row += "'"
        taken.add((row, seed))
        runs.append(run._replace(row=row, column="runs", seed=seed))
    record = {
        "title": "Runs",
        "table": "",
        "reference": "",
        "quantity": "accuracy",
        "config": "",
        "overrides": {},
        "command": f"# runs of experiments.main in {root}",
        "seeds": sorted({run.seed for run in runs}),
        "points": [],
    }
    rows = list(dict.fromkeys(run.row for run in runs))
    return [SweepRuns(root.resolve().name or "runs", root, record, rows, ["runs"], runs)]


def read_run(folder: Path, row: str, column: str, seed: int) -> Run:
    """Returns a run from its folder, in whatever state that is."""
    texts = ("summary.json", "config.json", "partition.json")
    read = {name: record.read_json(folder / name) for name in texts}
    summary, config, partition = (read[name][0] for name in texts)
    state, problem = FINISHED, ""
    broken = [f"{name} is {what}" for name, (_, what) in read.items() if what]
    if not folder.is_dir():
        state, problem = MISSING, "not started"
    elif broken:
        state, problem = DAMAGED, broken[0]
    elif summary is None:
        state, problem = UNFINISHED, "not finished: no summary.json"
    elif problem := _summary_problem(summary):
        state = DAMAGED
    elif config is None:
        state, problem = DAMAGED, "config.json is missing"
    num_classes = (partition or {}).get("num_classes")
    return Run(
        row,
        column,
        seed,
        folder,
        state,
        problem,
        summary or {},
        _block(config, "config"),
        _block(config, "provenance"),
        num_classes if isinstance(num_classes, int) and num_classes > 0 else None,
    )


def _block(content: dict[str, Any] | None, name: str) -> dict[str, Any]:
    block = (content or {}).get(name)
    return block if isinstance(block, dict) else {}


def _summary_problem(summary: Mapping[str, Any]) -> str:
    for name in ("final_accuracy", "diverged_round"):
        if name not in summary:
            return f"summary.json has no {name}"
        if not isinstance(summary[name], int | float | None):
            return f"{name} in summary.json is {summary[name]!r}"
    return ""
