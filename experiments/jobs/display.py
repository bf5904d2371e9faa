"""The progress of a sweep on the screen: a line for each run that ends, and a bar on a terminal."""

import statistics
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from zo_fl.host import units

from . import pool
from .plan import Job

_SHOWN = 3  # running jobs that are named


class SweepDisplay:
    """Shows the progress of a sweep's jobs. A context manager.

    Args:
      jobs: all jobs.
      parallel: number of jobs at a time, for the time left.
    """

    def __init__(self, jobs: Sequence[Job], parallel: int):
        self._jobs, self._parallel, self._has_begun = jobs, parallel, False
        console = Console()
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
        )
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=len(jobs))

    def __enter__(self) -> "SweepDisplay":
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def update(self, job: Job | None, statuses: pool.Statuses) -> None:
        """Shows a change, or without a job the time that passed."""
        states = Counter(status.state for status in statuses.values())
        over = states[pool.DONE] + states[pool.FAILED] + states[pool.BLOCKED]
        if not self._has_begun:
            self._print(f"{len(self._jobs)} runs, {over} of them finished before")
        elif job is not None and statuses[job.folder].state != pool.RUNNING:
            status = statuses[job.folder]
            took = "" if status.seconds is None else units.duration(status.seconds)
            to_go = self._to_go(statuses, states[pool.WAITING] + states[pool.RUNNING] / 2)
            line = f"[{over}/{len(self._jobs)}] {status.state:7} {job.name}"
            self._print("  ".join(filter(None, (line, took, status.message, to_go))))
        self._has_begun = True
        running = [job.name for job in self._jobs if statuses[job.folder].state == pool.RUNNING]
        more = [f"and {len(running) - _SHOWN} more"] if len(running) > _SHOWN else []
        text = "; ".join(running[:_SHOWN] + more)
        self._bar.update(self._task, completed=over, description=text)

    def _to_go(self, statuses: pool.Statuses, left: float) -> str:
        """Returns the time that the rest takes at the mean pace of what this command finished."""
        done = [s.seconds for s in statuses.values() if s.state == pool.DONE and s.seconds]
        if not (done and left):
            return ""
        return f"{units.duration(statistics.mean(done) * left / self._parallel)} left"

    def _print(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
