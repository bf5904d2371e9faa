"""The folder of a run: config and provenance, metrics, ledger, checkpoints, summary.

A run goes on from its newest checkpoint that is whole; metrics and ledger are cut off after it. A
checkpoint that is damaged is set aside, and the one before it is taken. Rows that are damaged or
missing are lost, and a line says which. Of several processes all save their part of a checkpoint,
and the first writes everything else.
"""

import functools
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from zo_fl.engine.algorithm import ServerState
from zo_fl.engine.fields import ConfigError
from zo_fl.engine.types import PyTree
from zo_fl.host import processes
from zo_fl.host.checkpoint import Checkpoints, Damaged
from zo_fl.host.files import write_whole
from zo_fl.host.ledger import LedgerWriter
from zo_fl.host.metrics import FILE_NAME as METRICS
from zo_fl.host.metrics import MetricsWriter, as_json, read_metrics
from zo_fl.host.record import Record
from zo_fl.host.schedule import Schedule
from zo_fl.host.screen import Stopwatch

CONFIG, SUMMARY = "config.json", "summary.json"
_OF_A_RUN = (METRICS, "checkpoints", SUMMARY, "ledger.msgpack")


class Position(NamedTuple):
    """The position of a run, saved beside each state.

    Attributes:
      done: rounds.
      ended: ``(place, rounds done then)`` of phases that ended early.
      best: the most validation examples that were right at a question of the present phase's
        ``Stop``; -1 before the first one.
      waited: questions since then.
    """

    done: int = 0
    ended: tuple[tuple[int, int], ...] = ()
    best: int = -1
    waited: int = 0


def position_of(done: int, saved: Mapping[str, Any]) -> Position:
    """Returns where a run was when ``saved`` was written beside its state."""
    ended = tuple((place, after) for place, after in saved.get("ended", []))
    return Position(done, ended, saved.get("best", -1), saved.get("waited", 0))


class RunFolder:
    """One run's folder while the run goes on.

    Args:
      path: the folder; it exists.
      clock: started when the process began with the run.

    Attributes:
      path: the folder.
      record: the results so far.
    """

    def __init__(self, path: Path, clock: Stopwatch):
        self.path, self.record, self._clock = path, Record(), clock
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
        while rounds := self.checkpoints.rounds():
            try:
                return position_of(rounds[-1], self.checkpoints.progress(rounds[-1]))
            except Damaged as damaged:
                self._set_aside(rounds[-1], damaged)
        if self.checkpoints.has_set_aside():
            raise ConfigError(
                f"all checkpoints of {self.path} are damaged, and set aside in it; start again "
                "with another --workdir"
            )
        return Position()

    def restore(self, done: int, like: ServerState) -> ServerState | None:
        """Returns the state saved after ``done`` rounds, shaped like ``like``; None if damaged.

        Raises:
          ConfigError: it is of another structure.
        """
        try:
            state, saved = self.checkpoints.restore(done, like)
        except Damaged as damaged:
            self._set_aside(done, damaged)
            return None
        self.record.restore(saved)
        return state

    def adopt(
        self,
        donor: Path,
        state: ServerState,
        saved: Mapping[str, Any],
        at: Position,
        schedule: Schedule,
    ) -> None:
        """Takes over the metrics and the last state of a finished run in the folder ``donor``.

        Args:
          donor: the finished run's folder.
          state: its last state.
          saved: the dict that was saved with it.
          at: its position.
          schedule: of this run.
        """
        self.record.adopt(saved, schedule, at.done)
        with processes.agreed():
            if processes.is_first():
                rows = read_metrics(donor)
                with MetricsWriter(self.path) as writer:
                    writer.write(row for row in rows if row["round"] <= at.done)
        # The checkpoint last: without it the next try starts afresh.
        self.save(state, at, schedule)

    def save(self, state: ServerState, at: Position, schedule: Schedule) -> None:
        """Saves a state; it is kept for ever if other runs or a replay may start from it."""
        saved = self.record.saved | {"seconds": self._seconds()} | at._asdict()
        self.checkpoints.save(at.done, state, saved, keep=schedule.is_kept(at.done))

    def open(self, done: int, made_by: Mapping[str, Any]) -> None:
        """Opens metrics and ledger; what they say of rounds after ``done`` is dropped.

        Args:
          done: rounds that are done.
          made_by: what the run goes on with; the record warns if it began with something else.
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
                changes = _changes(self.path, made_by) if done else ""
                if changes:
                    self._say(f"goes on from round {done} with {changes}")

    def close(self) -> None:
        """Closes metrics and ledger."""
        for file in (self._metrics, self._ledger):
            if file is not None:
                file.close()

    def write(self, rows: list[dict[str, Any]], sent: PyTree | None, phase: str) -> None:
        """Writes the rows of a chunk, and what clients sent in its rounds.

        Args:
          rows: one for each round.
          sent: leaves ``[R, ...]``, at least as many as rounds; None where none are recorded.
          phase: name.
        """
        if self._ledger is not None and sent is not None:
            for i, row in enumerate(rows):
                leaves = [leaf[i] for leaf in jax.tree.leaves(sent)]
                self._ledger.write(row["round"], phase, leaves)
        if self._metrics is not None:
            self._metrics.write(rows)

    def finish(self, title: str, schedule: Schedule, done: int) -> dict[str, Any]:
        """Writes ``summary.json`` and ``curves.png``, and returns the summary."""
        with processes.agreed():
            if processes.is_first():
                with self._clock.during("drawing"):
                    # Here, because matplotlib takes a second that the first round need not wait.
                    from zo_fl.host import curves

                    rows = read_metrics(self.path)
                    curves.draw_curves(rows, self.path / "curves.png", title, schedule.pivot)
        summary = self.record.summary(schedule, done, self._seconds())
        with processes.agreed():
            if processes.is_first():
                write_json(self.path / SUMMARY, summary)
        return summary

    def _set_aside(self, done: int, damaged: Damaged) -> None:
        self._say(f"{damaged}: set aside as {self.checkpoints.set_aside(done)}")

    def _say(self, note: str) -> None:
        """Warns of what was found, also where nothing else is printed."""
        self.record.warn(note)
        for text in self.record.news():
            if processes.is_first():
                print(f"warning: {text}", file=sys.stderr, flush=True)

    def _seconds(self) -> dict[str, float]:
        """Returns the run's seconds so far, those before a resume included."""
        before, spent = self.record.saved["seconds"], self._clock.spent()
        return {part: before.get(part, 0.0) + spent.get(part, 0.0) for part in before | spent}


def write_json(path: Path, content: Any) -> None:
    """Writes ``content`` as indented JSON, whole or not at all; floats that are not finite as null.

    Raises:
      StorageError: it cannot be written.
    """
    write_whole(path, json.dumps(as_json(content), indent=2, allow_nan=False) + "\n")


def read_json(path: Path, *names: str) -> dict[str, Any] | None:
    """Returns the object in a JSON file, or None if there is no file.

    Args:
      path: the file.
      *names: that the object must have.

    Raises:
      ConfigError: it is damaged.
    """
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
    except ValueError:
        content = None
    if not isinstance(content, dict) or not content:
        why = "not a JSON object"
    elif missing := [name for name in names if name not in content]:
        why = f"no {missing[0]}"
    else:
        return content
    raise ConfigError(f"{path} is damaged: {why}; mend it, or choose another folder")


def finished(path: Path) -> dict[str, Any] | None:
    """Returns the summary of a finished run, or None if there is none.

    Raises:
      ConfigError: it is damaged.
    """
    names = ("rounds", "diverged_round", "final_accuracy", "uplink_bytes", "wall_seconds")
    return read_json(path / SUMMARY, *names)


def check(
    path: Path,
    identity: Callable[[Mapping[str, Any]], dict[str, Any]],
    config: Mapping[str, Any],
    model: str | None = None,
) -> None:
    """Checks that a folder is free, or holds a run of the same config.

    Args:
      path: the folder.
      identity: ``config -> dict``, what makes a run the one it is, by dotted names.
      config: resolved.
      model: the user's own, in words.

    Raises:
      ConfigError: it holds a run of another config or model; says what differs first.
    """
    earlier = read_json(path / CONFIG, "config")
    if earlier is None:
        left = next((name for name in _OF_A_RUN if (path / name).exists()), None)
        if left is not None:
            raise ConfigError(
                f"{path} has a run's {left} and no {CONFIG} that says which run; bring it back, or "
                "change --workdir"
            )
        return
    try:
        old = identity(earlier["config"])
    except (ConfigError, TypeError, AttributeError, KeyError) as error:
        raise ConfigError(
            f"{path} holds a run of another version of this program ({error}); change --workdir"
        ) from None
    if earlier.get("model") != model:
        raise ConfigError(
            f"{path} holds a run with the model {earlier.get('model') or 'of the config'}, given "
            f"{model or 'that of the config'}; only the same model resumes: change it back, or "
            "--workdir"
        )
    new = identity(config)
    for field in sorted(old.keys() | new.keys()):
        if old.get(field) != new.get(field):
            raise ConfigError(
                f"{path} holds a run with config.{field}={old.get(field)!r}, given "
                f"{new.get(field)!r}; only the same config resumes: change it back, or --workdir"
            )


def create(path: Path, made: Mapping[str, Any], partition: Mapping[str, Any]) -> None:
    """Makes the folder with ``config.json`` and ``partition.json``; leaves existing ones alone.

    Raises:
      ConfigError: the folder cannot be made.
    """
    if (path / CONFIG).exists():
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / "partition.json", partition)
        write_json(path / CONFIG, made)
    except OSError as error:
        raise ConfigError(
            f"cannot write to the folder {path} ({error.strerror}); change --workdir"
        ) from None


def wait_until_seen(path: Path, seconds: float = 60.0) -> None:
    """Waits for what another process has created: a network file system may show it late.

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
    """Returns in words how a run goes on with something else than it began with, "" if not."""
    begun = (read_json(path / CONFIG) or {}).get("provenance") or {}
    return ", ".join(
        f"{part} {name} {value} (begun with {begun[part].get(name)})"
        for part in ("versions", "devices", "numerics")
        if part in begun
        for name, value in made_by[part].items()
        if value != begun[part].get(name)
    )
