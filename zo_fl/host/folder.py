"""The folder of a run: config and provenance, metrics, ledger, checkpoints, summary.

A run goes on from its newest checkpoint that is whole; metrics and ledger are cut off after it. A
damaged checkpoint is set aside, and the one before it is taken. Rows that are damaged or missing
are lost, and a line says which. Of several processes all save their part of a checkpoint, and the
first writes everything else.
"""

import functools
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zo_fl.engine.algorithm import ServerState
from zo_fl.engine.fields import ConfigError
from zo_fl.engine.types import PyTree
from zo_fl.host import devices, processes
from zo_fl.host.checkpoint import Checkpoints, Damaged
from zo_fl.host.files import StorageError, as_json, read_json, write_json
from zo_fl.host.ledger import FILE_NAME as LEDGER
from zo_fl.host.ledger import LedgerWriter
from zo_fl.host.metrics import FILE_NAME as METRICS
from zo_fl.host.metrics import MetricsWriter, read_metrics
from zo_fl.host.record import Record
from zo_fl.host.schedule import Position, Schedule, position_of
from zo_fl.host.screen import Stopwatch

CONFIG, SUMMARY = "config.json", "summary.json"
_OF_A_RUN = (METRICS, "checkpoints", SUMMARY, LEDGER)


class RunFolder:
    """One run's folder, which exists, while the run goes on.

    Args:
      path: the folder.
      clock: started when the process began with the run.
      title: of its pictures.
      chosen: as for ``Record``.

    Attributes:
      record: the results so far.
    """

    def __init__(
        self, path: Path, clock: Stopwatch, title: str = "", chosen: Mapping[str, Any] = {}
    ):
        self.path, self.record, self._clock, self._title = path, Record(chosen), clock, title
        self._metrics: MetricsWriter | None = None
        self._ledger: LedgerWriter | None = None

    @functools.cached_property
    def checkpoints(self) -> Checkpoints:
        """The folder's checkpoints, opened at the first use."""
        return Checkpoints(self.path)

    def newest(self) -> Position:
        """Returns the position of the newest checkpoint that can be read, or else the start.

        Raises:
          ConfigError: all checkpoints are damaged.
        """
        if not processes.any_of((self.path / "checkpoints").exists()):
            return Position()
        while (done := self.checkpoints.latest_round()) is not None:
            try:
                return position_of(done, self.checkpoints.progress(done))
            except Damaged as damaged:
                self._set_aside(done, damaged)
        if self.checkpoints.has_set_aside():
            raise ConfigError(
                f"all checkpoints of {self.path} are damaged, and set aside in it; start again "
                "with another --workdir"
            )
        return Position()

    def restore(self, done: int, like: ServerState, schedule: Schedule) -> ServerState | None:
        """Returns the state saved after ``done`` rounds, shaped like ``like``; None if damaged.

        Raises:
          ConfigError: the saved state has another structure.
        """
        try:
            state, saved = self.checkpoints.restore(done, like)
        except Damaged as damaged:
            self._set_aside(done, damaged)
            return None
        self.record.restore(saved, schedule, done)
        return state

    def adopt(
        self, donor: Path, planned: Schedule, like: Callable[[Position], ServerState]
    ) -> None:
        """Takes over metrics and last state of a finished run, unless this run has begun.

        Args:
          donor: the finished run's folder.
          planned: the schedule, if no phase ends early.
          like: a position -> a state with the shapes of the one there.

        Raises:
          ConfigError: the checkpoint is missing, damaged, or of another structure.
        """
        if self.checkpoints.latest_round() is not None:
            return
        checkpoints = Checkpoints(donor, read_only=True)
        done = checkpoints.latest_round()
        if done is None:
            raise ConfigError(f"{donor} has no checkpoint any more; change --warm_start")
        try:
            at = position_of(done, checkpoints.progress(done))
            state, saved = checkpoints.restore(done, like(at))
        except Damaged as damaged:
            raise ConfigError(f"{damaged}; change --warm_start") from None
        schedule = planned.ended(at.ended)
        self.record.restore(saved, schedule, done)
        with processes.agreed():
            if processes.is_first():
                with MetricsWriter(self.path) as writer:
                    writer.write(row for row in read_metrics(donor) if row["round"] <= done)
        # The checkpoint last: without it the next try starts afresh.
        self.save(state, at, schedule)

    def save(self, state: ServerState, at: Position, schedule: Schedule) -> None:
        """Saves a state; it is kept for ever if other runs or a replay may start from it."""
        saved = self.record.saved | {"seconds": self._seconds()} | at._asdict()
        self.checkpoints.save(at.done, state, saved, keep=schedule.is_kept(at.done))

    def open(self, done: int, made_by: Mapping[str, Any]) -> None:
        """Opens metrics and ledger, and drops their rounds after ``done``.

        Warns of lost rows, of a damaged ledger, and of a run that began with another provenance
        than ``made_by``.
        """
        with processes.agreed():
            if processes.is_first():
                self._metrics = MetricsWriter(self.path, resume_after=done)
                self._ledger = LedgerWriter(self.path, resume_after=done)
                if lost := self._metrics.lost:
                    shown = ", ".join(map(str, lost[:5])) + ", ..." * (len(lost) > 5)
                    self._say(f"{self.path / METRICS} has lost {len(lost)} of its rows: {shown}")
                if self._ledger.damage:
                    self._say(f"{self._ledger.damage}; goes on without replays")
                if done and (changes := _changes(self.path, made_by)):
                    self._say(f"goes on from round {done} with {changes}")

    def close(self) -> None:
        """Closes the metrics."""
        if self._metrics is not None:
            self._metrics.close()

    def write(self, rows: list[dict[str, Any]], sent: PyTree | None) -> None:
        """Writes a row for each of a chunk of rounds, and their records.

        Args:
          rows: of one phase.
          sent: leaves ``[R, ...]``, at least as many as rounds; None where none are recorded.
        """
        if self._ledger is not None and sent is not None:
            self._ledger.write([row["round"] for row in rows], rows[0]["phase"], sent)
        if self._metrics is not None:
            self._metrics.write(rows)

    def finish(self, schedule: Schedule, done: int) -> dict[str, Any]:
        """Writes ``summary.json`` and ``curves.png``, and returns the summary."""

        def summarize() -> dict[str, Any]:
            summary = self.record.summary(schedule, done, self._seconds())
            if processes.is_first():
                write_json(self.path / SUMMARY, summary)
            return summary

        with processes.agreed():
            summary = summarize()
            if processes.is_first():
                with self._clock.during("drawing"):
                    self._draw(schedule)
                summary = summarize()  # with the time that it took, or a warning
        return summary

    def _draw(self, schedule: Schedule) -> None:
        """Draws the curves, or warns: a picture that fails must not cost the run."""
        # Here, because matplotlib takes a second that the first round need not wait.
        try:
            from zo_fl.host import curves

            rows, picture = read_metrics(self.path), self.path / "curves.png"
            curves.draw_curves(rows, picture, self._title, schedule.pivot)
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            self._say(f"no curves.png: {type(error).__name__}: {first}")

    def _set_aside(self, done: int, damaged: Damaged) -> None:
        self._say(f"{damaged}: set aside as {self.checkpoints.set_aside(done)}")

    def _say(self, note: str) -> None:
        """Warns, also where nothing else is printed."""
        self.record.warn(note)
        for text in self.record.news():
            if processes.is_first():
                print(f"warning: {text}", file=sys.stderr, flush=True)

    def _seconds(self) -> dict[str, float]:
        """Returns the run's seconds so far, those before a resume included."""
        before, spent = self.record.saved["seconds"], self._clock.spent()
        return {part: before.get(part, 0.0) + spent.get(part, 0.0) for part in before | spent}


def finished(path: Path) -> dict[str, Any] | None:
    """Returns the summary of a finished run, or None if there is none.

    Raises:
      ConfigError: the summary is damaged.
    """
    names = ("rounds", "diverged_round", "final_accuracy", "uplink_bytes", "wall_seconds")
    return read_json(path / SUMMARY, *names)


def check(
    path: Path,
    differences: Callable[[Mapping[str, Any], Mapping[str, Any]], list[tuple[str, Any, Any]]],
    config: Mapping[str, Any],
    model: str | None = None,
) -> Mapping[str, Any] | None:
    """Checks that a folder is free, or holds a run that a run of ``config`` goes on with.

    Returns the config of the run in it, None if it is free.

    Args:
      path: the folder.
      differences: ``(earlier config, config) -> [(field, then, now), ...]``, why a run of the
        second cannot go on with one of the first.
      config: resolved.
      model: the user's own, in words.

    Raises:
      ConfigError: the folder holds a run of another config or model, named with the first field
        that differs.
    """
    earlier = read_json(path / CONFIG, "config")
    if earlier is None:
        left = next((name for name in _OF_A_RUN if (path / name).exists()), None)
        if left is not None:
            raise ConfigError(
                f"{path} has a run's {left} and no {CONFIG} that says which run; bring it back, or "
                "change --workdir"
            )
        return None
    try:
        differ = differences(earlier["config"], config)
    except (ConfigError, TypeError, AttributeError, KeyError) as error:
        raise ConfigError(
            f"{path} holds a run of another version of this program ({error}); change --workdir"
        ) from None
    devices.check_random_numbers(path, earlier)
    if earlier.get("model") != model:
        raise ConfigError(
            f"{path} holds a run with the model {earlier.get('model') or 'of the config'}, given "
            f"{model or 'that of the config'}; only the same model resumes: change it back, or "
            "--workdir"
        )
    if differ:
        field, then, now = differ[0]
        raise ConfigError(
            f"{path} holds a run with config.{field}={then!r}, given {now!r}; only the same config "
            "resumes, also with more rounds of its last method: change it back, or --workdir"
        )
    return earlier["config"]


def create(path: Path, made: Mapping[str, Any], partition: Mapping[str, Any]) -> None:
    """Writes ``config.json`` and ``partition.json`` into the folder.

    Of those that are there only the config may change, with which the run goes on.

    Raises:
      ConfigError: they cannot be written.
    """
    earlier = read_json(path / CONFIG)
    try:
        if earlier is None:
            write_json(path / "partition.json", partition)
            write_json(path / CONFIG, made)
        elif earlier["config"] != as_json(made["config"]):
            (path / SUMMARY).unlink(missing_ok=True)  # of fewer rounds
            write_json(path / CONFIG, earlier | {"config": made["config"]})
    except StorageError as error:
        raise ConfigError(f"{error}; change --workdir") from None


def wait_until_seen(path: Path, seconds: float = 60.0) -> None:
    """Waits for a folder of another process: a network file system may show it late.

    Raises:
      ConfigError: it does not show.
    """
    deadline = time.monotonic() + seconds
    while not (path / CONFIG).exists():
        if time.monotonic() > deadline:
            raise ConfigError(
                f"the first process made {path.absolute()} and it is not seen here; all "
                "processes must share its file system; change --workdir"
            )
        time.sleep(0.1)


def _changes(path: Path, made_by: Mapping[str, Any]) -> str:
    """Returns what differs between a run's first provenance and this one, "" if nothing does."""
    begun = (read_json(path / CONFIG) or {}).get("provenance") or {}
    return ", ".join(
        f"{part} {name} {value} (begun with {begun[part].get(name)})"
        for part in ("versions", "devices", "numerics")
        if part in begun
        for name, value in made_by[part].items()
        if value != begun[part].get(name)
    )
