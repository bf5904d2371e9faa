"""What a person sees of a run: a live bar, or a line an evaluation, and a last table."""

import statistics
import textwrap
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import rich.progress
from rich.console import Console

from zo_fl.host import units

WIDTH = 80
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


def closing_table(summary: Mapping[str, Any]) -> str:
    """Returns a run's summary as a table, at most 80 columns wide; missing entries are left out.

    Args:
      summary: what ``train.run`` returns, and optionally ``workdir``. Accuracies are fractions,
        sizes bytes, times seconds; each may be None.
    """
    rows = _of_phases(summary.get("phases") or []) + [
        (label, show(summary[key]))
        for key, (label, show) in _SUMMARY.items()
        if summary.get(key) is not None
    ]
    width = max((len(label) for label, _ in rows), default=0)
    lines = []
    for label, text in rows:
        # Folded, not shortened: a path is there to be copied.
        parts = textwrap.wrap(text, WIDTH - width - 3, break_on_hyphens=False) or [""]
        lines += [
            f" {label:{width}}  {parts[0]}",
            *(" " * (width + 3) + part for part in parts[1:]),
        ]
    rule = "─" * max(map(len, lines), default=0)
    return "\n".join([rule, *lines, rule])


def _of_phases(phases: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Returns a line a phase with its gain, where there are more than the pivot tells of."""
    if len(phases) < 3:
        return []
    rows, before = [], None
    for phase in phases:
        reached = phase["test_accuracy"]
        gain = "" if before is None else f"  ({units.points(reached - before)})"
        rows.append((f"after {phase['phase']}", units.percent(reached) + gain))
        before = reached
    return rows


def print_closing_table(summary: Mapping[str, Any]) -> None:
    """Prints ``closing_table(summary)``."""
    print(closing_table(summary))


def print_seeds_table(summaries: Sequence[Mapping[str, Any]], path: Any) -> None:
    """Prints mean(standard deviation) of the accuracies of several seeds, in percent.

    Args:
      summaries: what ``train.run_seeds`` returns.
      path: folder of their folders.
    """
    rows = {
        "seeds": str(len(summaries)),
        "test accuracy at the pivot": _spread(summaries, "pivot_accuracy"),
        "test accuracy at the end": _spread(summaries, "final_accuracy"),
        "gain after the pivot": _spread(summaries, "delta_lo"),
        "time": units.duration(max(summary["wall_seconds"] for summary in summaries)),
        "results in": str(path),
    }
    rows = {label: text for label, text in rows.items() if text}
    width = max(map(len, rows))
    print("\n".join(f" {label:{width}}  {text}" for label, text in rows.items()))


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


def _spread(summaries: Sequence[Mapping[str, Any]], field: str) -> str:
    values = [100 * summary[field] for summary in summaries if summary[field] is not None]
    if not values:
        return ""
    spread = f"({statistics.stdev(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread} %"


_SUMMARY: dict[str, tuple[str, Callable[[Any], str]]] = {
    "pivot_accuracy": ("test accuracy at the pivot", units.percent),
    "final_accuracy": ("test accuracy at the end", units.percent),
    "delta_lo": ("gain after the pivot", units.points),
    "best_val_accuracy": ("best validation accuracy", units.percent),
    "uplink_bytes": ("sent by clients", units.num_bytes),
    "low_uplink_bytes": ("of it by a low-resource one", units.num_bytes),
    "downlink_bytes": ("sent to clients", units.num_bytes),
    "forward_passes": ("forward passes", units.integer),
    "wall_seconds": ("time", units.duration),
    "workdir": ("results in", str),
}


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
