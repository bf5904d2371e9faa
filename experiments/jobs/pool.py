"""Runs jobs as processes, some at a time, each after the one it starts from.

Finished jobs are skipped; a job that fails never stops the rest.
"""

import math
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zo_fl.engine.fields import ConfigError
from zo_fl.host import files
from zo_fl.host import folder as run_folder
from zo_fl.host.signals import interrupting_signals

from .. import startup
from .plan import Job

WAITING, RUNNING, DONE, FAILED, BLOCKED = "waiting", "running", "done", "failed", "blocked"
_POLL_SECONDS = 0.1
_DIVERGED = 1  # exit status of experiments.main
_SAVING_SECONDS = 60.0
_ERROR = re.compile(r"[\w.]*(Error|Exception|Interrupt)\b")
_AFTERMATH = re.compile(r"sys.meta_path is None|^Exception ignored|interpreter shutdown")


class Status(NamedTuple):
    """The state of a job. ``seconds`` is None if an earlier command finished it."""

    state: str
    seconds: float | None = None
    message: str = ""


Statuses = dict[Path, Status]


class _Running(NamedTuple):
    jobs: list[Job]  # several jobs are one program
    process: subprocess.Popen
    began: float


def run(
    jobs: Sequence[Job],
    parallel: int,
    command: Callable[[list[Job], Path | None], list[str]],
    show: Callable[[Job | None, Statuses], None] = lambda job, statuses: None,
    together: Callable[[Job], object] = lambda job: job.folder,
    until: float = math.inf,
) -> Statuses:
    """Runs all jobs and returns how each ended, by its folder.

    Args:
      jobs: the jobs, each after the one it starts from.
      parallel: number of processes at a time.
      command: ``(jobs of one process, finished warm-up or None) -> argv``.
      show: called with each job that changed, or with None as time passes, and where all stand.
      together: jobs with an equal value of this are one process.
      until: the time, as ``time.monotonic`` has it, after which nothing runs.

    Raises:
      KeyboardInterrupt: a signal to stop came, or the time is up; the processes were told to save,
        and have ended.
    """
    statuses = {job.folder: Status(DONE if is_finished(job.folder) else WAITING) for job in jobs}
    running: list[_Running] = []
    with interrupting_signals():
        try:
            show(None, statuses)
            while True:
                for group in _ready(jobs, statuses, parallel - len(running), together):
                    running.append(_start(group, command))
                    for job in group:
                        statuses[job.folder] = Status(RUNNING)
                        show(job, statuses)
                for job in _block(jobs, statuses):
                    show(job, statuses)
                if not running:
                    return statuses
                if time.monotonic() > until:
                    raise KeyboardInterrupt("the time is up")
                time.sleep(_POLL_SECONDS)
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    for job in one.jobs:
                        statuses[job.folder] = _ended(one, job)
                        show(job, statuses)
                show(None, statuses)
        except KeyboardInterrupt:
            _stop(running)
            raise


def log_path(job: Job) -> Path:
    """Returns the file of a job's output, beside its folder."""
    return job.folder.with_name(job.folder.name + ".log")


def is_finished(folder: Path) -> bool:
    """Returns whether a folder holds a finished run; one with a damaged summary is not."""
    try:
        return run_folder.finished(folder) is not None
    except ConfigError:
        return False


def _ready(
    jobs: Sequence[Job], statuses: Statuses, room: int, together: Callable[[Job], object]
) -> list[list[Job]]:
    """Returns the jobs that can start now, a list for each process."""
    groups: dict[object, list[Job]] = {}
    for job in jobs:
        can_start = job.after is None or statuses[job.after].state == DONE
        if can_start and statuses[job.folder].state == WAITING:
            groups.setdefault(together(job), []).append(job)
    return list(groups.values())[: max(room, 0)]


def _block(jobs: Sequence[Job], statuses: Statuses) -> list[Job]:
    """Marks the jobs whose warm-up failed, and returns them; in order, so a chain falls at once."""
    blocked = []
    for job in jobs:
        if statuses[job.folder].state != WAITING or job.after is None:
            continue
        if statuses[job.after].state in (FAILED, BLOCKED):
            statuses[job.folder] = Status(BLOCKED, message=f"its warm-up {job.after} failed")
            blocked.append(job)
    return blocked


def _start(jobs: list[Job], command: Callable[[list[Job], Path | None], list[str]]) -> _Running:
    log = log_path(jobs[0])
    for job in jobs:
        log_path(job).parent.mkdir(parents=True, exist_ok=True)
        # A run of a sweep that was killed may still be saving.
        files.wait_until_free(job.folder, _SAVING_SECONDS)
    for job in jobs[1:]:
        with log_path(job).open("a", encoding="utf-8") as file:
            print(f"one program with {jobs[0].name}: {log}", file=file)
    argv = command(jobs, _usable(jobs[0].after))
    with log.open("ab") as file:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            # Unbuffered, so the log has output and errors in order. PARENT: it ends with us.
            env=os.environ | {"PYTHONUNBUFFERED": "1", startup.PARENT: str(os.getpid())},
            # Away from the terminal: Ctrl-C would reach a run twice, and stop it unsaved.
            start_new_session=True,
        )
    return _Running(jobs, process, time.monotonic())


def _usable(warmup: Path | None) -> Path | None:
    """Returns the warm-up to start from; not a diverged one, which the run repeats itself."""
    if warmup is None:
        return None
    summary: Any = files.read_json(warmup / "summary.json") or {}
    return warmup if summary.get("diverged_round") is None else None


def _ended(one: _Running, job: Job) -> Status:
    seconds = (time.monotonic() - one.began) / len(one.jobs)
    code = one.process.returncode
    # Status 1 is also that of a Python exception; only a run that diverged leaves a summary.
    if code in (0, _DIVERGED) and is_finished(job.folder):
        return Status(DONE, seconds)
    said = last_useful_line(log_path(one.jobs[0]))
    return Status(FAILED, seconds, f"exit status {code}: {said}")


def last_useful_line(path: Path) -> str:
    """Returns the line of a log that best tells why a process ended."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
    # Threads that outlive the interpreter fail in their own ways.
    useful = [line for line in lines if line and not _AFTERMATH.search(line)]
    said = [line for line in useful if line.startswith("error:")]
    errors = [line for line in useful if _ERROR.match(line)]
    return (said or errors or useful or ["no output"])[-1]


def _stop(running: Sequence[_Running]) -> None:
    """Tells all processes to save and end, and waits; a second interrupt kills them."""
    for one in running:
        one.process.send_signal(signal.SIGTERM)  # SIGINT may be ignored: nohup, a shell's &
    try:
        for one in running:
            one.process.wait()
    except KeyboardInterrupt:
        for one in running:
            one.process.kill()
        for one in running:
            one.process.wait()
