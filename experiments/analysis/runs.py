"""Runs and sweeps as their results are shown, and how a run's folder is read.

Reading never fails: it names what is missing, unfinished or damaged, and returns the rest.
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from zo_fl import config as configs
from zo_fl.engine.fields import ConfigError
from zo_fl.host.units import is_number

from ..jobs import record

FINISHED, UNFINISHED, MISSING, DAMAGED = "finished", "unfinished", "missing", "damaged"
Point = tuple[str, str]  # row and column of a sweep


class Run(NamedTuple):
    """One seed of one point. ``problem`` says in words why it is not finished."""

    row: str
    column: str
    seed: int | str
    folder: Path
    state: str
    problem: str
    summary: dict[str, Any]
    config: dict[str, Any]
    provenance: dict[str, Any]
    num_classes: int | None


class SweepRuns(NamedTuple):
    """A sweep and all its runs, the missing ones too.

    ``record`` is the content of ``sweep.json``. Runs outside of sweeps form a sweep of one column
    whose record has no points.
    """

    name: str
    folder: Path
    record: dict[str, Any]
    rows: list[str]
    columns: list[str]
    runs: list[Run]

    def of(self, row: str, column: str) -> list[Run]:
        """Returns the runs of a point, by seed."""
        return [run for run in self.runs if (run.row, run.column) == (row, column)]

    def points(self) -> list[Point]:
        """Returns row and column of each point, row by row."""
        return list(dict.fromkeys((run.row, run.column) for run in self.runs))

    def is_plain(self) -> bool:
        """Returns whether these are runs outside of sweeps."""
        return "points" not in self.record


def read_run(folder: Path, row: str, column: str, seed: int | str) -> Run:
    """Returns the run in a folder, as far as it got."""
    read = record.of_run(folder)
    summary, config, partition = (content for content, _ in read.values())
    broken = [f"{name}.json is {problem}" for name, (_, problem) in read.items() if problem]
    state, problem = FINISHED, ""
    if not (folder.is_dir() or record.kept_of(folder).exists()):
        state, problem = MISSING, "not started"
    elif broken:
        state, problem = DAMAGED, broken[0]
    elif summary is None:
        state, problem = UNFINISHED, f"not finished: no summary.json{_so_far(folder)}"
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
        configs.named(_block(config, "config")),
        _block(config, "provenance"),
        num_classes if isinstance(num_classes, int) and num_classes > 0 else None,
    )


def seconds_a_round(run: Run) -> float | None:
    """Returns the median seconds of a round of the last phase; None if it was not timed."""
    rows = record.rows_of(run.folder)
    timed = [row.get("seconds") for row in rows if row.get("phase") == rows[-1].get("phase")]
    seconds = [value for value in timed if is_number(value)]
    return statistics.median(seconds) if seconds else None


def last_validation(run: Run) -> float | None:
    """Returns the accuracy on validation examples at a run's end; None if there are none."""
    rows = record.rows_of(run.folder)
    value = rows[-1].get("val_accuracy") if rows else None
    return value if is_number(value) else None


def numbers(of_runs: Iterable[Run], field: str) -> list[float]:
    """Returns a field of each run's summary, where it is a number."""
    values = [run.summary.get(field) for run in of_runs]
    return [value for value in values if is_number(value)]


def dotted(config: Mapping[str, Any], field: str) -> Any:
    """Returns the value of a dotted field, None if there is none."""
    value: Any = config
    for name in field.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def unfinished(sweep: SweepRuns) -> list[str]:
    """Returns a line for each run that is missing, unfinished or damaged."""
    return [
        f"{', '.join(filter(None, (run.row, run.column)))}, seed {run.seed}: {run.problem}"
        for run in sweep.runs
        if run.state != FINISHED
    ]


def finished(runs: Iterable[Run]) -> list[Run]:
    """Returns the runs that are finished."""
    return [run for run in runs if run.state == FINISHED]


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Makes a folder for files that the block writes.

    Raises:
      ConfigError: they cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ConfigError(
            f"cannot write to the folder {out} ({error.strerror}); change --out"
        ) from None


def _so_far(folder: Path) -> str:
    done = [row["round"] for row in record.rows_of(folder) if is_number(row.get("round"))]
    return f", {done[-1]} rounds so far" if done else ""


def _block(content: dict[str, Any] | None, name: str) -> dict[str, Any]:
    block = (content or {}).get(name)
    return block if isinstance(block, dict) else {}


def _summary_problem(summary: Mapping[str, Any]) -> str:
    for name in ("final_accuracy", "diverged_round"):
        if name not in summary:
            return f"summary.json has no {name}"
        if summary[name] is not None and not isinstance(summary[name], int | float):
            return f"{name} in summary.json is {summary[name]!r}"
    if summary["diverged_round"] is None and not is_number(summary["final_accuracy"]):
        return f"final_accuracy in summary.json is {summary['final_accuracy']!r}"
    return ""
