"""Runs the jobs of a sweep, each by the command line of an experiment."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from zo_fl.host.signals import INTERRUPTED

from .. import cli
from . import plan, pool
from .display import SweepDisplay
from .plan import Job

_MAIN = __name__.rsplit(".", 2)[0] + ".main"


def run(
    planned: Sequence[Job],
    parallel: int,
    config_file: str,
    shared: Path | None = None,
    alike: Mapping[Path, plan.Alike] = MappingProxyType({}),
) -> int:
    """Runs jobs, reports failures at the end, and returns the exit status.

    Args:
      planned: the jobs.
      parallel: number of processes at a time.
      config_file: the config of all runs.
      shared: folder where runs share features.
      alike: runs that are to be one program with others, by folder; see ``plan.side_by_side``.
    """

    def command(of_one: list[Job], after: Path | None) -> list[str]:
        line = command_line(of_one[0], after, config_file)
        for job in of_one[1:]:
            own = [f"{name}={value}" for name, value in alike[job.folder].numbers.items()]
            line.append(f"--also={shlex.join([str(job.folder), *own])}")
        return line if shared is None else [*line, f"--shared={shared}"]

    def together(job: Job) -> object:
        return alike[job.folder].key if job.folder in alike else job.folder

    try:
        with SweepDisplay(planned, parallel) as display:
            statuses = pool.run(planned, parallel, command, display.update, together)
    except KeyboardInterrupt:
        print("stopped, and saved; to resume, run the same command", file=sys.stderr)
        return INTERRUPTED
    bad = [job for job in planned if statuses[job.folder].state in (pool.FAILED, pool.BLOCKED)]
    for job in bad:
        status = statuses[job.folder]
        log = f"\n  log: {pool.log_path(job)}" if status.state == pool.FAILED else ""
        print(f"{status.state}: {job.name}: {status.message}{log}", file=sys.stderr)
    print(f"{len(planned) - len(bad)} of {len(planned)} runs are finished")
    return 1 if bad else 0


def command_line(job: Job, after: Path | None, config_file: str) -> list[str]:
    """Returns the command of a run; ``after`` is the finished warm-up that it starts from."""
    command = [sys.executable, "-m", _MAIN, f"--config={config_file}"]
    command += [f"--config.{field}={cli.as_text(value)}" for field, value in job.overrides.items()]
    command += [f"--workdir={job.folder}"]
    return command + ([f"--warm_start={after}"] if after is not None else [])
