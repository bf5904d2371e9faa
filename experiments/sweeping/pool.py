"""Runs jobs as processes, some at a time, each after the one it starts from.

What is finished is skipped, what fails never stops the rest. Knows nothing of sweeps but ``Job``.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from zo_fl.host import workdir
from zo_fl.host.signals import sigterm_interrupts

from .jobs import Job

WAITING, RUNNING, DONE, FAILED, BLOCKED = "waiting", "running", "done", "failed", "blocked"
_POLL_SECONDS = 0.1
_DIVERGED = 1  # exit status of experiments.main


class Status(NamedTuple):
    """Where a job stands. ``seconds`` is None for what an earlier command finished."""

    state: str
    seconds: float | None = None
    message: str = ""


Statuses = dict[Path, Status]


class Display(Protocol):
    """What is told of every change; see ``display``."""

    def update(self, job: Job | None, statuses: Statuses) -> None:
        """Shows where all jobs stand; ``job`` is the one that changed, if any."""


class _Running(NamedTuple):
    job: Job
    process: subprocess.Popen
    began: float


def run(
    jobs: Sequence[Job],
    parallel: int,
    command: Callable[[Job, Path | None], list[str]],
    display: Display,
) -> Statuses:
    """Runs all jobs and returns where each ended, by its folder.

    Args:
      jobs: a job comes after the one it starts from.
      parallel: processes at a time.
      command: ``(job, finished warm-up or None) -> argv``.
      display: shows the progress.

    Raises:
      KeyboardInterrupt: SIGINT or SIGTERM came; the processes were told to save, and have ended.
    """
    statuses = {job.folder: _initial(job) for job in jobs}
    running: list[_Running] = []
    with sigterm_interrupts():
        try:
            display.update(None, statuses)
            while True:
                for job in _ready(jobs, statuses, parallel - len(running)):
                    running.append(_start(job, command))
                    statuses[job.folder] = Status(RUNNING)
                    display.update(job, statuses)
                for job in _block(jobs, statuses):
                    display.update(job, statuses)
                if not running:
                    return statuses
                time.sleep(_POLL_SECONDS)
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    statuses[one.job.folder] = _ended(one)
                    display.update(one.job, statuses)
                display.update(None, statuses)
        except KeyboardInterrupt:
            _stop(running)
            raise


def log_path(job: Job) -> Path:
    """Returns the file that a job's output goes to, beside its folder."""
    return job.folder.with_name(job.folder.name + ".log")


def is_finished(folder: Path) -> bool:
    """Returns whether a run's folder holds a finished run."""
    return (folder / "summary.json").exists()


def _initial(job: Job) -> Status:
    return Status(DONE) if is_finished(job.folder) else Status(WAITING)


def _ready(jobs: Sequence[Job], statuses: Statuses, room: int) -> list[Job]:
    """Returns the first jobs that can start now."""
    ready = [
        job
        for job in jobs
        if statuses[job.folder].state == WAITING
        and (job.after is None or statuses[job.after].state == DONE)
    ]
    return ready[: max(room, 0)]


def _block(jobs: Sequence[Job], statuses: Statuses) -> list[Job]:
    """Marks the jobs whose warm-up failed, and returns them. In order: a chain falls at once."""
    blocked = []
    for job in jobs:
        if statuses[job.folder].state != WAITING or job.after is None:
            continue
        if statuses[job.after].state in (FAILED, BLOCKED):
            statuses[job.folder] = Status(BLOCKED, message=f"its warm-up {job.after} failed")
            blocked.append(job)
    return blocked


def _start(job: Job, command: Callable[[Job, Path | None], list[str]]) -> _Running:
    log = log_path(job)
    log.parent.mkdir(parents=True, exist_ok=True)
    argv = command(job, _usable(job.after))
    with log.open("ab") as file:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            # In order in the log, whatever is an error and what is not.
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            # Away from the terminal: Ctrl-C would reach a run twice, which stops it unsaved.
            start_new_session=True,
        )
    return _Running(job, process, time.monotonic())


def _usable(warmup: Path | None) -> Path | None:
    """Returns the warm-up to start from: not a diverged one, which the run will repeat itself."""
    if warmup is None:
        return None
    summary: Any = workdir.read_json(warmup / "summary.json") or {}
    return warmup if summary.get("diverged_round") is None else None


def _ended(one: _Running) -> Status:
    seconds, code = time.monotonic() - one.began, one.process.returncode
    # Python's own status 1 is an exception: only a run that diverged leaves a summary.
    if code in (0, _DIVERGED) and is_finished(one.job.folder):
        return Status(DONE, seconds)
    return Status(FAILED, seconds, f"exit status {code}: {_last_line(log_path(one.job))}")


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "no output")


def _stop(running: Sequence[_Running]) -> None:
    """Tells all processes to save and end, and waits; a second interrupt kills them."""
    for one in running:
        one.process.send_signal(signal.SIGINT)
    try:
        for one in running:
            one.process.wait()
    except KeyboardInterrupt:
        for one in running:
            one.process.kill()
        for one in running:
            one.process.wait()
