"""Finds all that a folder holds: sweeps by their ``sweep.json``, and runs that belong to none."""

from pathlib import Path
from typing import Any, NamedTuple

from zo_fl.engine.errors import ConfigError

from ..sweeping import record
from . import plain_runs
from .runs import SweepRuns, read_run

_MADE_BY = (
    "make runs by python -m experiments.main --config=configs/quickstart.py --workdir={0}/a, or "
    "many by python -m experiments.sweep --config=configs/quickstart.py "
    "--sweep=configs/sweeps/splits.py --workdir={0}"
)


class Found(NamedTuple):
    """All sweeps under a folder, runs without one as the last, and what could not be read."""

    sweeps: list[SweepRuns]
    problems: list[str]


def read(root: str | Path) -> Found:
    """Returns all sweeps and runs under a folder, or the one it is.

    Raises:
      ConfigError: there is no such folder, or nothing in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise ConfigError(
            f"no folder {str(root)!r}; change --runs to the --workdir of experiments.sweep or to "
            "the folder of the runs of experiments.main"
        )
    sweeps, problems, taken = [], [], []
    for folder in (root, *sorted(path for path in root.iterdir() if path.is_dir())):
        path = folder / "sweep.json"
        if path.exists():
            taken.append(folder)
            content, problem = record.read_json(path)
            problem = problem or record.problem(content)
            if problem or content is None:
                problems.append(f"{path}: {problem}; run the sweep's command again")
            else:
                sweeps.append(_read_sweep(folder, content))
    plain, more = plain_runs.read(root, taken)
    sweeps, problems = sweeps + plain, problems + more
    if not sweeps:
        looked = f"in {root} there is no sweep.json and, three folders deep, no run's config.json"
        raise ConfigError("; ".join([*(problems or [looked]), _MADE_BY.format(root)]))
    return Found(sweeps, problems)


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
