"""The clock of a run, and its screen: a bar or lines while it goes on."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import rich.progress
from rich.console import Console

from zo_fl.host import units
from zo_fl.host.schedule import Schedule

PREPARING = "preparing"


class Stopwatch:
    """Seconds from now on, each counted for one activity; ``clock`` returns seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock, self._since, self._now = clock, clock(), PREPARING
        self._spent: dict[str, float] = defaultdict(float)

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Counts the block's time for ``part``, and no longer for what is around it."""
        around = self._go_on_with(part)
        try:
            yield
        finally:
            self._go_on_with(around)

    def spent(self) -> dict[str, float]:
        """Returns the seconds of each part until now; unclaimed ones are ``PREPARING``."""
        self._go_on_with(self._now)
        return dict(self._spent)

    def _go_on_with(self, part: str) -> str:
        now, before = self._clock(), self._now
        self._spent[before] += now - self._since
        self._since, self._now = now, part
        return before


class Progress:
    """Shows how far a run is. A context manager.

    The time left follows from the pace of the present phase. Later phases are taken to be as much
    slower as their rounds are more work; a time that includes such phases begins with ``~``.

    Args:
      schedule: of the whole run.
      start_round: rounds done before, when resumed.
      quiet: shows nothing at all.
      console: where to; the default is standard output.
      clock: seconds, for tests.
    """

    def __init__(
        self,
        schedule: Schedule,
        start_round: int = 0,
        quiet: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._done, self._quiet, self._clock = start_round, quiet, clock
        self._console = console or Console()
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.fields[phase]}", markup=False),
            rich.progress.BarColumn(bar_width=None),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("{task.fields[status]}", markup=False),
            console=self._console,
            expand=True,
            disable=quiet or not self._console.is_terminal,
        )
        self._task = self._bar.add_task("run", completed=start_round, phase="", status="")
        self._updated = clock()
        self._begin("")
        self.plan(schedule)

    def _begin(self, phase: str) -> None:
        """Starts the sums for the pace of a phase."""
        self._phase, self._rounds, self._elapsed = phase, 0, 0.0
        self._images, self._seconds = 0, 0.0

    def plan(self, schedule: Schedule) -> None:
        """Takes another schedule: a phase ended early."""
        self._schedule = schedule
        self._bar.update(self._task, total=schedule.end)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    @contextmanager
    def compiling(self, phase: str) -> Iterator[None]:
        """Shows that a phase is being compiled; at the end, how long it took."""
        began = self._clock()
        self._bar.update(self._task, phase=phase, status="compiling …")
        yield
        self._updated = self._clock()
        self.message(f"{phase}: compiled in {self._updated - began:.1f} s")
        self._bar.update(self._task, status="first rounds …")

    def update(self, rows: Sequence[Mapping[str, Any]], images: int, seconds: float) -> None:
        """Shows a finished chunk of rounds, all of one phase.

        Args:
          rows: of ``metrics.jsonl``.
          images: forward passes of single images.
          seconds: that the rounds took.
        """
        last, now = rows[-1], self._clock()
        is_first = last["phase"] != self._phase
        if is_first:
            self._begin(last["phase"])
        loss, accuracy = last.get("train_loss"), last.get("test_accuracy")
        # Several runs as one program show the same rounds, one after the other.
        self._rounds += last["round"] - self._done
        self._elapsed += now - self._updated
        self._images, self._seconds = self._images + images, self._seconds + seconds
        self._done, self._updated = last["round"], now
        parts = [] if loss is None else [f"loss {units.loss(loss)}"]
        for name, key in (("test acc", "test_accuracy"), ("val acc", "val_accuracy")):
            if last.get(key) is not None:
                parts.append(f"{name} {units.percent(last[key]):>6}")
        if self._images and self._seconds > 0:
            parts.append(f"{units.integer(self._images / self._seconds)} images/s")
        total = self._schedule.end
        if self._done < total:
            parts.append(self._left())
        status = "  ".join(parts)
        self._bar.update(self._task, completed=self._done, phase=self._phase, status=status)
        if accuracy is not None or (is_first and loss is not None):
            place = f"round {self._done:{len(str(total))}}/{total}"
            self.message(f"{place}  {self._phase:6}  {status}")

    def message(self, text: str) -> None:
        """Shows a line, above the bar if there is one."""
        if not self._quiet:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _left(self) -> str:
        phases, done = self._schedule.phases, self._done
        present = next(phase for phase in phases if done <= phase.end)
        work = sum(
            (phase.end - max(phase.start, done)) * phase.phase.pass_equivalents
            for phase in phases
            if phase.end > done
        )
        of_present = present.phase.pass_equivalents
        seconds = self._elapsed / self._rounds * work / of_present if of_present else 0.0
        return f"{'~' if self._schedule.end > present.end else ''}{units.duration(seconds)} left"
