"""A run's folder while the run goes on: metrics, checkpoints, what a resumed run cannot redo.

Of several processes all save their part of a checkpoint, and the first writes everything else.
"""

import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zo_fl.core.errors import ConfigError
from zo_fl.core.types import PyTree, ServerState
from zo_fl.host import curves, privacy, processes, recovery, workdir
from zo_fl.host.checkpoint import Checkpoints, Damaged
from zo_fl.host.divergence import FAULTS, Divergence, all_zero, divergence_in, is_mute
from zo_fl.host.ledger import LedgerWriter
from zo_fl.host.metrics import MetricsWriter, read_metrics
from zo_fl.host.schedule import Schedule, Stretch
from zo_fl.host.units import is_number

Row = dict[str, Any]
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
      began: ``time.perf_counter()`` when the run, or what resumes it, began.
    """

    def __init__(self, path: Path, schedule: Schedule, began: float):
        self.path, self._schedule, self._began = path, schedule, began
        self.divergence: Divergence | None = None
        self._faults: dict[int, dict[str, float]] = {}  # of rounds that are not written yet
        self._still: set[int] = set()  # places of phases in which nothing moved, which was said
        self._news: list[str] = []
        self._damage: dict[str, Any] = {}  # what of the progress was found out after it was saved
        self._done = 0
        self._writer: MetricsWriter | None = None
        self._ledger: LedgerWriter | None = None
        # Saved beside the state.
        self._progress: dict[str, Any] = {
            "seconds": 0.0,
            "pivot_accuracy": None,
            "final_accuracy": None,
            "best_val_accuracy": None,
            "accuracy_at_best_val": None,
            "phases": [],  # the accuracy that each arrived at
            "warnings": [],
            "mute_rounds": 0,  # in turn, up to now
            "ended": [],  # (place, round) of phases that ended before their rounds were over
            "missing": [],  # rounds whose rows were lost by damage
            "ledger_from": 0,  # the ledger is whole from this round on
        }

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
        ends = [stretch.end for stretch in self._schedule.stretches]
        # Where it ended this run may be in the midst of a phase.
        reached = [phase for phase in progress["phases"] if phase["round"] in ends]
        self._progress |= progress | {"phases": reached}
        if done == self._schedule.pivot:
            self._progress["pivot_accuracy"] = self._progress["final_accuracy"]
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
        said = self._progress["warnings"]
        self._progress |= progress | self._damage  # of an earlier version it lacks what is new
        for text in said:
            self.warn(text)
        return state

    def save(self, state: ServerState, done: int) -> None:
        """Saves a state, for ever if other runs or a replay may start from it."""
        progress = self._progress | {"seconds": self._seconds()}
        self.checkpoints.save(done, state, progress, keep=self._schedule.is_kept(done))

    def plan(self, schedule: Schedule) -> None:
        """Takes a schedule in which no phase has ended early."""
        self._schedule, self._progress["ended"] = schedule, []

    def ended(self, schedule: Schedule, place: int, done: int) -> None:
        """Notes that phase ``place`` ended early, after round ``done`` of what is now the run."""
        self._schedule = schedule
        if [place, done] not in self._progress["ended"]:
            self._progress["ended"] = [*self._progress["ended"], [place, done]]

    def warn(self, text: str) -> None:
        """Notes a warning, for the summary and for who looks on; the same one once."""
        if text not in self._progress["warnings"]:
            self._progress["warnings"] = [*self._progress["warnings"], text]
            self._news.append(text)

    def news(self) -> list[str]:
        """Returns the warnings since it was asked last."""
        news, self._news = self._news, []
        return news

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

    def rows(
        self,
        stretch: Stretch,
        done: int,
        count: int,
        metrics: Mapping[str, np.ndarray],
        seconds: float,
        checked: Mapping[str, float],
    ) -> list[Row]:
        """Returns the rows of a chunk of rounds.

        Args:
          stretch: what the rounds belong to.
          done: rounds before the chunk.
          count: rounds of the chunk.
          metrics: ``f32[count]`` each, or longer.
          seconds: a round.
          checked: what was measured by a check after the last one.
        """
        rows = []
        for i in range(count):
            values = {name: float(value[i]) for name, value in metrics.items()}
            found = {name: values.pop(name) for name in FAULTS}
            self._faults[done + i + 1] = found
            if found["all_zero"] and stretch.place not in self._still:
                self._still.add(stretch.place)
                self.warn(all_zero(stretch.phase.name, done + i + 1))
            uplink, downlink = self._schedule.traffic(done + i + 1)
            row: Row = {"round": done + i + 1, "phase": stretch.phase.name}
            if "loss" in values:  # a method need not have one
                row["train_loss"] = values.pop("loss")
            row |= values | {"uplink_bytes": uplink, "downlink_bytes": downlink}
            rows.append(row | {"seconds": seconds})
        rows[-1] |= checked
        return rows

    def write(self, rows: Sequence[Row]) -> None:
        """Writes rows; notes where the run diverged, and what the last one was evaluated at."""
        row, progress = rows[-1], self._progress
        self._look_at(rows)
        if "test_accuracy" in row:
            progress["final_accuracy"] = row["test_accuracy"]
            if row["round"] == self._schedule.pivot:
                progress["pivot_accuracy"] = row["test_accuracy"]
            if row["round"] in [stretch.end for stretch in self._schedule.stretches]:
                reached = {key: row[key] for key in ("phase", "round", "test_accuracy")}
                progress["phases"] = [*progress["phases"], reached]
            best = progress["best_val_accuracy"]
            # NaN of no validation examples is the best of nothing.
            if is_number(row["val_accuracy"]) and (best is None or row["val_accuracy"] > best):
                progress["best_val_accuracy"] = row["val_accuracy"]
                progress["accuracy_at_best_val"] = row["test_accuracy"]
        if processes.is_first():
            assert self._writer is not None, "the folder is not open"
            self._writer.write(rows)
        self._done = row["round"]

    def _look_at(self, rows: Sequence[Row]) -> None:
        """Notes the first of some rows in which the run diverged."""
        faults, self._faults = self._faults, {}
        for each in rows:
            found = faults.get(each["round"], {})
            mute = self._progress["mute_rounds"] + 1 if is_mute(found) else 0
            self._progress["mute_rounds"] = mute
            self.divergence = divergence_in(each, found, mute)
            if self.divergence is not None:
                return

    def finish(self, title: str) -> dict[str, Any]:
        """Writes ``summary.json`` and ``curves.png``, and returns the summary."""
        done = self._done
        pivot, final = self._progress["pivot_accuracy"], self._progress["final_accuracy"]
        uplink, downlink = self._schedule.traffic(done)
        low_uplink, low_passes = self._schedule.of_low_client(done)
        summary = {
            "rounds": done,
            "diverged_round": None if self.divergence is None else self.divergence.round,
            "divergence": None if self.divergence is None else self.divergence.why,
            "pivot_accuracy": pivot,
            "final_accuracy": final,
            "best_val_accuracy": self._progress["best_val_accuracy"],
            "accuracy_at_best_val": self._progress["accuracy_at_best_val"],
            "delta_lo": None if pivot is None or final is None else final - pivot,
            "uplink_bytes": uplink,
            "downlink_bytes": downlink,
            "forward_passes": self._schedule.forward_passes(done),
            "backward_passes": self._schedule.backward_passes(done),
            "low_uplink_bytes": low_uplink,
            "low_passes": low_passes,
            "phases": self._progress["phases"],
            "warnings": self._progress["warnings"],
            "wall_seconds": self._seconds(),
        }
        revealed = privacy.account(self._schedule.stretches, done)
        if revealed is not None:
            summary["privacy"] = revealed
        with processes.agreed():
            if processes.is_first():
                rows = read_metrics(self.path / "metrics.jsonl")
                curves.draw_curves(rows, self.path / "curves.png", title, self._schedule.pivot)
                workdir.write_json(self.path / workdir.SUMMARY, summary)
        return summary

    def _say(self, note: str) -> None:
        """Notes what was found damaged, and says it even where nothing else is said."""
        self.warn(note)
        for text in self.news():
            if processes.is_first():
                print(f"warning: {text}", file=sys.stderr, flush=True)

    def _seconds(self) -> float:
        return self._progress["seconds"] + time.perf_counter() - self._began
