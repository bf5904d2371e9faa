"""Runs a table of experiments: every point of a sweep with every seed, a process each.

    python -m experiments.sweep --config=configs/quickstart.py --sweep=configs/sweeps/splits.py \
        --seeds=5 --workdir=R [--jobs=1] [--config.zo.lr=0.02]

Seed s sets ``config.seed`` and ``config.data.partition_seed``, so methods are paired: at one seed
all have the same partition, tiers and warm-up. Equal warm-ups are computed once, in R/warmups, and
so are the features of a model that stays as it is (in R/.shared: gigabytes, removed at the end).
Runs are in R/NAME/ROW--COLUMN/SEED, what they print beside them, what the sweep is in
R/NAME/sweep.json.
The same command skips what is finished and resumes what is not; with more seeds it extends the
sweep. ``python -m experiments.tables --runs=R`` shows the results.

Several runs at a time on one GPU need XLA_PYTHON_CLIENT_PREALLOCATE=false. With --vmap_points those
that differ in a rate or the like alone are one program (``experiments.main --also``): much faster
for small dense models, but no round of them can be replayed.

Exit status: 0 all fine (also where a loss stopped being finite: that is a result), 1 some runs
failed, 2 bad input, 130 interrupted (and saved).
"""

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from absl import flags

from zo_fl.core.errors import ConfigError
from zo_fl.host import lock

from . import cli
from .sweeping import jobs, pool, record
from .sweeping.display import SweepDisplay
from .sweeping.jobs import Job

SHARED = ".shared"  # in the folder of all sweeps, while one runs


def main(argv: list[str]) -> int:
    """Runs the sweep of the flags and returns the exit status."""
    del argv
    given = flags.FLAGS
    config_file, overrides, config = cli.given_config()
    for flag, example in (("sweep", "splits"), ("workdir", "runs/splits")):
        if not given[flag].value:
            raise ConfigError(f"no --{flag} given; pass for example --{flag}={example}")
    jobs.check_given(overrides)
    sweep = jobs.load_sweep(given.sweep, config)
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    root, name = Path(given.workdir), Path(given.sweep).stem
    planned = jobs.plan(sweep, config, overrides, seeds, root, name)
    if given.list:
        print("\n".join(describe(job, root) for job in planned))
        return 0
    command = shlex.join(["python", "-m", f"{__package__}.sweep", *sys.argv[1:]])
    content = record.make(sweep, config_file, overrides, command, seeds)
    with lock.owned(root):  # its warm-ups, and what its runs share, are those of all sweeps in it
        record.write(root / name / "sweep.json", content)
        try:
            numbers = jobs.side_by_side(planned, config) if given.vmap_points else {}
            return run(planned, given.jobs, config_file, root / SHARED, numbers)
        finally:
            shutil.rmtree(root / SHARED, ignore_errors=True)


def run(
    planned: Sequence[Job],
    parallel: int,
    config_file: str,
    shared: Path | None = None,
    numbers: Mapping[Path, tuple[str, jobs.Overrides]] = MappingProxyType({}),
) -> int:
    """Runs jobs, reports failures at the end, and returns the exit status.

    Args:
      planned: what to run.
      parallel: processes at a time.
      config_file: of all runs.
      shared: folder of what they leave for each other.
      numbers: by folder, of runs that may be one program with others; see ``jobs.side_by_side``.
    """

    def command(of_one: list[Job], after: Path | None) -> list[str]:
        line = command_line(of_one[0], after, config_file)
        for job in of_one[1:]:
            own = [f"{name}={value}" for name, value in numbers[job.folder][1].items()]
            line.append(f"--also={shlex.join([str(job.folder), *own])}")
        return line if shared is None else [*line, f"--shared={shared}"]

    def together(job: Job) -> object:
        return numbers[job.folder][0] if job.folder in numbers else job.folder

    try:
        with SweepDisplay(planned, parallel) as display:
            statuses = pool.run(planned, parallel, command, display, together)
    except KeyboardInterrupt:
        print("stopped, and saved; to resume, run the same command", file=sys.stderr)
        return 130
    bad = [job for job in planned if statuses[job.folder].state in (pool.FAILED, pool.BLOCKED)]
    for job in bad:
        status = statuses[job.folder]
        log = f"\n  log: {pool.log_path(job)}" if status.state == pool.FAILED else ""
        print(f"{status.state}: {job.name}: {status.message}{log}", file=sys.stderr)
    print(f"{len(planned) - len(bad)} of {len(planned)} runs are finished")
    return 1 if bad else 0


def command_line(job: Job, after: Path | None, config_file: str) -> list[str]:
    """Returns the command of a run.

    Args:
      job: what to run.
      after: the finished warm-up to start from, or None.
      config_file: of all runs of the sweep.
    """
    command = [sys.executable, "-m", f"{__package__}.main", f"--config={config_file}"]
    command += [f"--config.{field}={_text(value)}" for field, value in job.overrides.items()]
    command += [f"--workdir={job.folder}"]
    return command + ([f"--warm_start={after}"] if after is not None else [])


def describe(job: Job, root: Path) -> str:
    """Returns a line for ``--list``."""
    changes = " ".join(f"{field}={_text(value)}" for field, value in job.overrides.items())
    after = f"  after {job.after.relative_to(root)}" if job.after else ""
    return f"{job.folder.relative_to(root)}: {changes}{after}"


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _define_flags() -> None:
    cli.define_config()
    flags.DEFINE_string(
        "sweep", None, "A name in configs/sweeps, such as splits, or a file's path."
    )
    flags.DEFINE_string("workdir", None, "Folder of all sweeps and their warm-ups.")
    flags.DEFINE_integer("seeds", 5, "How many seeds.", lower_bound=1)
    flags.DEFINE_integer("first_seed", 0, "The first of them.", lower_bound=0)
    flags.DEFINE_integer("jobs", 1, "Runs at a time.", lower_bound=1)
    flags.DEFINE_bool(
        "vmap_points", False, "Run points that differ in a number alone as one program."
    )
    flags.DEFINE_bool("list", False, "Print the runs instead of running them.")


if __name__ == "__main__":
    _define_flags()  # here, so that other commands and tests can import this module
    cli.run(main)
