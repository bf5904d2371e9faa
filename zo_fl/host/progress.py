"""What a person sees of a run: a live bar, or a line an evaluation."""

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import rich.progress
from rich.console import Console

from zo_fl.host import units

_RECENT = 5  # chunks that the pace is estimated from


class Planned(NamedTuple):
    """A phase of the run, for the time that is left.

    Attributes:
      name: of the phase.
      num_rounds: of the phase, at least 1.
      work: of a round, in a unit that is the same for all phases of the run: forward passes, a
        forward and a backward one being three. None = unknown.
    """

    name: str
    num_rounds: int
    work: float | None = None


class _Pace(NamedTuple):
    """One chunk: images, device seconds, and seconds a round including evaluation and saving."""

    images: int
    seconds: float
    seconds_per_round: float


class _Ticking(NamedTuple):
    """A text with the seconds since it began, as they are whenever it is shown."""

    text: str
    began: float
    clock: Callable[[], float]

    def __str__(self) -> str:
        return f"{self.text} … {units.duration(self.clock() - self.began)}"


class Progress:
    """Shows how far a run is. A context manager.

    The time left is that of the present phase by its own pace and, of later phases, what their work
    lets expect: then it begins with ``~``. If that is not known it is a lower bound, ``≥``.

    Args:
      phases: of the whole run, in order.
      start_round: rounds done before, when resumed.
      quiet: True shows nothing at all.
      console: where to; the default is standard output.
      clock: seconds, for tests.
    """

    def __init__(
        self,
        phases: Sequence[Planned],
        start_round: int = 0,
        quiet: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._done, self._quiet, self._clock = start_round, quiet, clock
        self._phases = tuple(phases)
        self._console = console or Console()
        self._phase: str | None = None
        self._pace: deque[_Pace] = deque(maxlen=_RECENT)
        self._updated = clock()
        self._accuracy: float | None = None
        self._live = None
        if self._console.is_terminal and not quiet:
            self._live, self._task = _live_bar(self._console, self._total, start_round)

    @property
    def _total(self) -> int:
        return sum(phase.num_rounds for phase in self._phases)

    def plan(self, phases: Sequence[Planned]) -> None:
        """Takes another plan: a phase ended before its rounds were over."""
        self._phases = tuple(phases)
        if self._live:
            self._live.update(self._task, total=self._total)

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_) -> None:
        if self._live:
            self._live.stop()

    def update(self, rows: Sequence[Mapping[str, Any]], images: int, seconds: float) -> None:
        """Shows a finished chunk of rounds, all of one phase.

        Args:
          rows: the rows of ``metrics.jsonl`` of these rounds.
          images: images that went forward through the model in these rounds.
          seconds: time the rounds took.
        """
        last = rows[-1]
        self._observe(last["phase"], len(rows), images, seconds)
        self._done = last["round"]
        evaluated = last.get("test_accuracy") is not None
        self._accuracy = last["test_accuracy"] if evaluated else self._accuracy
        if self._live:
            self._live.update(
                self._task,
                completed=self._done,
                phase=last["phase"],
                status=_join(
                    f"loss {units.loss(last.get('train_loss'))}",
                    self._accuracy is not None and f"test {units.percent(self._accuracy)}",
                    self._speed(),
                    self._left(),
                ),
            )
        elif evaluated:
            digits = len(str(self._total))
            val = last.get("val_accuracy")
            self.message(
                _join(
                    f"round {self._done:{digits}}/{self._total}",
                    f"{last['phase']:6}",
                    f"loss {units.loss(last.get('train_loss'))}",
                    f"test acc {units.percent(last['test_accuracy']):>6}",
                    val is not None and f"val acc {units.percent(val):>6}",
                    self._speed(),
                    self._left(),
                )
            )

    @contextmanager
    def compiling(self, phase: str) -> Iterator[None]:
        """Shows that a phase is being compiled, with running seconds; at the end, how long it took.

        Args:
          phase: name.
        """
        began = self._clock()
        self._wait(f"compiling {phase}", began)
        yield
        now = self._clock()
        self.message(f"{phase}: compiled in {now - began:.1f} s")
        # Until a first chunk of rounds is done there is nothing else to show.
        self._wait(f"first rounds of {phase}", now)

    def _wait(self, text: str, began: float) -> None:
        if self._live:
            status = _Ticking(text, began, self._clock)
            self._live.update(self._task, phase="", status=status)

    def message(self, text: str) -> None:
        """Shows a line, above the bar if there is one."""
        if not self._quiet:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _observe(self, phase: str, num_rounds: int, images: int, seconds: float) -> None:
        """Notes the pace of a chunk. The first of a phase may have compiled: it is soon dropped."""
        now = self._clock()
        if phase != self._phase:
            self._phase, self._first = phase, True
            self._pace.clear()
            # The time since the last update would include compilation.
            self._pace.append(_Pace(images, seconds, seconds / num_rounds))
        else:
            if self._first:
                self._pace.clear()
                self._first = False
            self._pace.append(_Pace(images, seconds, (now - self._updated) / num_rounds))
        self._updated = now

    def _speed(self) -> str | None:
        seconds = sum(pace.seconds for pace in self._pace)
        images = sum(pace.images for pace in self._pace)
        return f"{units.integer(images / seconds)} images/s" if seconds > 0 else None

    def _left(self) -> str | None:
        if self._done >= self._total:
            return None
        # The median: a chunk of a new length, or a busy moment, counts no more than another.
        pace = statistics.median(pace.seconds_per_round for pace in self._pace)
        seconds, mark, end, present = 0.0, "", 0, None
        for phase in self._phases:
            start, end = end, end + phase.num_rounds
            if start < self._done:
                seconds, present = pace * max(end - self._done, 0), phase
            elif present and present.work and phase.work and mark != "≥ ":
                seconds += pace * phase.num_rounds * phase.work / present.work
                mark = "~"
            else:
                mark = "≥ "
        # At the pivot nothing may be known of what comes.
        return None if mark == "≥ " and not seconds else f"{mark}{units.duration(seconds)} left"


def mean_rows(of_runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Returns the rows of a chunk, averaged over runs that are computed side by side."""
    return [
        row[0]
        | {
            name: statistics.fmean(one[name] for one in row)
            for name, value in row[0].items()
            if isinstance(value, float)
        }
        for row in zip(*of_runs, strict=True)
    ]


def _live_bar(console: Console, total: int, done: int):
    live = rich.progress.Progress(
        rich.progress.TextColumn("{task.fields[phase]}", markup=False),
        rich.progress.BarColumn(bar_width=None),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[status]}", markup=False),
        console=console,
        expand=True,
    )
    return live, live.add_task("run", total=total, completed=done, phase="", status="starting")


def _join(*parts: str | bool | None) -> str:
    return "  ".join(str(part) for part in parts if part)
