"""A run's folder while the run goes on: metrics, checkpoints, what a resumed run cannot redo.

Of several processes all save their part of a checkpoint, and the first writes everything else.
"""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from zo_fl.engine.errors import ConfigError
from zo_fl.engine.types import PyTree, ServerState
from zo_fl.host import processes, recovery, workdir
from zo_fl.host.checkpoint import Checkpoints, Damaged
from zo_fl.host.ledger import LedgerWriter
from zo_fl.host.metrics import MetricsWriter, read_metrics
from zo_fl.host.schedule import Schedule
from zo_fl.host.standing import Row, Standing
from zo_fl.host.stopwatch import Stopwatch

Ended = list[tuple[int, int]]


def ended_of(progress: Mapping[str, Any]) -> Ended:
    """Returns ``(place, round)`` of phases that ended early, of what is saved beside a state."""
    return [(place, done) for place, done in progress.get("ended", [])]


def resume(
    folders: Sequence["RunFolder"], like: Callable[[int, Ended], Sequence[ServerState]]
) -> tuple[int, list[ServerState]]:
    """Returns the rounds that all of some runs have done, and their states; 0 and none to begin.

    Args:
      folders: of runs side by side.
      like: ``(rounds done, phases that ended early) -> `` a state of each run, of the phase that
        the rounds end in; calls ``plan`` and ``ended`` for these phases.

    Raises:
      ConfigError: checkpoints are of another structure, or all are damaged.
    """
    while done := min(folder.newest() for folder in folders):
        ended = folders[0].ended_by(done)
        if ended is None:
            continue
        pairs = zip(folders, like(done, ended), strict=True)
        states = [folder.restore(done, shaped) for folder, shaped in pairs]
        whole = [state for state in states if state is not None]
        if len(whole) == len(folders):
            return done, whole
    return 0, []


class RunFolder:
    """The host's side of one run.

    Args:
      path: the folder; it exists.
      schedule: the run's.
      clock: of the run, or of what resumes it.
    """

    def __init__(self, path: Path, schedule: Schedule, clock: Stopwatch):
        self.path, self._schedule, self._clock = path, schedule, clock
        self.standing = Standing()
        self._damage: dict[str, Any] = {}  # what of the standing was found out after it was saved
        self._done = 0
        self._writer: MetricsWriter | None = None
        self._ledger: LedgerWriter | None = None

    @functools.cached_property
    def checkpoints(self) -> Checkpoints:
        """The folder's own; opened when they are asked for first."""
        return Checkpoints(self.path)

    def adopt(self, donor: Path, like: Callable[[int, Ended], ServerState]) -> None:
        """Takes over a finished run's last checkpoint and metrics, unless the run has begun.

        Args:
          donor: the finished run's folder, checked by ``warm_starts.check``.
          like: ``(rounds done, phases that ended early) -> `` a state of the phase that the rounds
            end in; calls ``ended`` for these phases.

        Raises:
          ConfigError: its checkpoint is missing, or of another structure.
        """
        if self.checkpoints.latest_round() is not None:
            return
        saved = Checkpoints(donor, read_only=True)
        done = saved.latest_round()
        if done is None:
            raise ConfigError(f"{donor} has no checkpoint any more; change --warm_start")
        try:
            state, progress = saved.restore(done, like(done, ended_of(saved.progress(done))))
        except Damaged as damaged:
            raise ConfigError(f"{damaged}; change --warm_start") from None
        self.standing.adopt(progress, self._schedule, done)
        with processes.agreed():
            if processes.is_first():
                rows = read_metrics(donor / "metrics.jsonl")
                with MetricsWriter(self.path) as writer:
                    writer.write(row for row in rows if row["round"] <= done)
        # The checkpoint last: without it nothing is adopted, and the next try starts afresh.
        self.save(state, done)

    def newest(self) -> int:
        """Returns the round to go on from, 0 if there is none; says what it finds damaged.

        Raises:
          ConfigError: all checkpoints are damaged.
        """
        place = recovery.find(self.path, self.checkpoints, self._schedule.replayed)
        self._damage = {"missing": place.missing, "ledger_from": place.ledger_from}
        for note in place.notes:
            self._say(note)
        return place.round

    def ended_by(self, done: int) -> Ended | None:
        """Returns which phases had ended early at a checkpoint; None if that is damaged."""
        try:
            return ended_of(self.checkpoints.progress(done))
        except Damaged as damaged:
            self._say(recovery.set_aside(self.checkpoints, done, damaged))
            return None

    def restore(self, done: int, like: ServerState) -> ServerState | None:
        """Returns the state saved after ``done`` rounds, shaped like ``like``; None if damaged.

        Raises:
          ConfigError: it is of another structure.
        """
        try:
            state, progress = self.checkpoints.restore(done, like)
        except Damaged as damaged:
            self._say(recovery.set_aside(self.checkpoints, done, damaged))
            return None
        self.standing.restore(progress | self._damage)
        return state

    def save(self, state: ServerState, done: int) -> None:
        """Saves a state, for ever if other runs or a replay may start from it."""
        progress = self.standing.saved | {"seconds": self._seconds()}
        self.checkpoints.save(done, state, progress, keep=self._schedule.is_kept(done))

    def plan(self, schedule: Schedule) -> None:
        """Takes a schedule in which no phase has ended early."""
        self._schedule, self.standing.saved["ended"] = schedule, []

    def ended(self, schedule: Schedule, place: int, done: int) -> None:
        """Notes that phase ``place`` ended early, after round ``done`` of what is now the run."""
        self._schedule = schedule
        self.standing.ended(place, done)

    def open(self, done: int, made_by: Mapping[str, Any] | None = None) -> None:
        """Opens the metrics, of which rows after ``done`` rounds are dropped.

        Args:
          done: rounds that are done.
          made_by: what the run goes on with, noted in ``config.json`` if it began with another.
        """
        self._done = done
        with processes.agreed():
            if processes.is_first():
                if done and made_by is not None:
                    workdir.note_stretch(self.path, done, made_by)
                self._writer = MetricsWriter(self.path, resume_after=done)
                self._ledger = LedgerWriter(self.path, resume_after=done)

    def close(self) -> None:
        """Closes the metrics and the ledger."""
        for file in (self._writer, self._ledger):
            if file is not None:
                file.close()

    def record(self, phase: str, done: int, count: int, recorded: PyTree) -> None:
        """Writes what was recorded of the ``count`` rounds after round ``done``.

        Args:
          phase: name.
          done: rounds before.
          count: rounds.
          recorded: leaves ``[count, ...]``, or longer.
        """
        for i in range(count if self._ledger is not None else 0):
            assert self._ledger is not None
            of_round = jax.tree.map(lambda leaf: leaf[i], recorded)  # noqa: B023
            self._ledger.write(done + i + 1, phase, of_round)

    def write(self, rows: Sequence[Row]) -> None:
        """Writes rows, and notes what they say of the run."""
        self.standing.look_at(rows, self._schedule)
        if processes.is_first():
            assert self._writer is not None, "the folder is not open"
            self._writer.write(rows)
        self._done = rows[-1]["round"]

    def finish(self, title: str) -> dict[str, Any]:
        """Writes ``summary.json`` and ``curves.png``, and returns the summary."""
        with processes.agreed():
            if processes.is_first():
                with self._clock.during("drawing"):
                    # Here, because matplotlib takes a second that the first round need not wait.
                    from zo_fl.host import curves

                    rows = read_metrics(self.path / "metrics.jsonl")
                    curves.draw_curves(rows, self.path / "curves.png", title, self._schedule.pivot)
        summary = self.standing.summary(self._schedule, self._done, self._seconds())
        with processes.agreed():
            if processes.is_first():
                workdir.write_json(self.path / workdir.SUMMARY, summary)
        return summary

    def _say(self, note: str) -> None:
        """Notes what was found damaged, and says it even where nothing else is said."""
        self.standing.warn(note)
        for text in self.standing.news():
            if processes.is_first():
                print(f"warning: {text}", file=sys.stderr, flush=True)

    def _seconds(self) -> dict[str, float]:
        """Returns what the run has taken so far, what it resumed included."""
        before, spent = self.standing.saved["seconds"], self._clock.spent()
        return {part: before.get(part, 0.0) + spent.get(part, 0.0) for part in before | spent}
