"""What a person sees of a sweep: a live table, or a line a change where there is no terminal."""

import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from zo_fl.host import units

from . import pool
from .jobs import Job

_SHOWN = 8  # running jobs that are named


class SweepDisplay:
    """Shows where the jobs of a sweep stand. A context manager.

    Args:
      jobs: all of them.
      parallel: how many run at a time, for the time left.
      console: where to; the default is standard output.
    """

    def __init__(self, jobs: Sequence[Job], parallel: int, console: Console | None = None):
        self._jobs, self._parallel = jobs, parallel
        self._console = console or Console()
        self._began: dict[str, float] = {}
        self._live = (
            Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        )

    def __enter__(self) -> "SweepDisplay":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_) -> None:
        if self._live:
            self._live.stop()

    def update(self, job: Job | None, statuses: pool.Statuses) -> None:
        """Shows a change, or, without one, the time that passed."""
        if job is not None and statuses[job.folder].state == pool.RUNNING:
            self._began[job.name] = time.monotonic()
        if self._live:
            self._live.update(self._table(statuses), refresh=True)
        elif job is not None and statuses[job.folder].state != pool.RUNNING:
            self._print(job, statuses)
        elif job is None and not self._began and not any(s.seconds for s in statuses.values()):
            done = counts(statuses)["done"]
            self._line(f"{len(self._jobs)} runs, {done} of them finished before")
            self._began[""] = time.monotonic()  # once

    def _print(self, job: Job, statuses: pool.Statuses) -> None:
        status, count = statuses[job.folder], counts(statuses)
        over = len(self._jobs) - count["left"] - count["running"]
        parts = [f"[{over}/{len(self._jobs)}] {status.state:7} {job.name}"]
        parts += [units.duration(status.seconds)] if status.seconds is not None else []
        parts += [status.message] if status.message else []
        left = seconds_left(statuses, self._parallel)
        parts += [f"{units.duration(left)} left"] if left else []
        self._line("  ".join(parts))

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _table(self, statuses: pool.Statuses) -> Table:
        table = Table(box=None, show_header=False, padding=(0, 1))
        count = counts(statuses)
        left = seconds_left(statuses, self._parallel)
        summary = "   ".join(f"{number} {name}" for name, number in count.items())
        table.add_row(summary, f"{units.duration(left)} left" if left else "")
        running = [job for job in self._jobs if statuses[job.folder].state == pool.RUNNING]
        for job in running[:_SHOWN]:
            seconds = time.monotonic() - self._began.get(job.name, time.monotonic())
            table.add_row(f"  {job.name}", units.duration(seconds))
        if len(running) > _SHOWN:
            table.add_row(f"  and {len(running) - _SHOWN} more", "")
        return table


def counts(statuses: pool.Statuses) -> dict[str, int]:
    """Returns how many jobs are done, running, failed (or wait for a failed one) and left."""
    states = Counter(status.state for status in statuses.values())
    return {
        "done": states[pool.DONE],
        "running": states[pool.RUNNING],
        "failed": states[pool.FAILED] + states[pool.BLOCKED],
        "left": states[pool.WAITING],
    }


def seconds_left(statuses: pool.Statuses, parallel: int) -> float | None:
    """Returns an estimate from the mean of what this command finished; None before that."""
    took = [
        status.seconds
        for status in statuses.values()
        if status.state == pool.DONE and status.seconds is not None
    ]
    count = counts(statuses)
    if not took:
        return None
    return sum(took) / len(took) * (count["left"] + count["running"] / 2) / parallel
