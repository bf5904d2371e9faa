"""The screen of a run: a bar or lines while it goes on, and a table at its end."""

import statistics
import textwrap
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import rich.progress
from rich.console import Console

from zo_fl.host import units

WIDTH = 80
PREPARING = "preparing"


class Stopwatch:
    """Seconds from now on, each counted for one thing: what is done at that moment.

    Args:
      clock: seconds.
    """

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
        """Returns the seconds of each part until now; all that nobody claimed is ``PREPARING``."""
        self._go_on_with(self._now)
        return dict(self._spent)

    def _go_on_with(self, part: str) -> str:
        now, before = self._clock(), self._now
        self._spent[before] += now - self._since
        self._since, self._now = now, part
        return before


class Planned(NamedTuple):
    """A phase of the run, for the time that is left.

    Attributes:
      name: of the phase.
      num_rounds: of the phase, at least 1.
      work: of a round, in forward passes; a backward pass counts two.
    """

    name: str
    num_rounds: int
    work: float


class Progress:
    """Shows how far a run is. A context manager.

    The time left is that of the present phase by its own pace; later phases take as much longer as
    their rounds are more work, and a time that counts on this begins with ``~``.

    Args:
      phases: of the whole run, in order.
      start_round: rounds done before, when resumed.
      quiet: shows nothing at all.
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
        self._console = console or Console()
        self._updated, self._live = clock(), None
        self._begin("")
        if self._console.is_terminal and not quiet:
            self._live = _live_bar(self._console)
            self._task = self._live.add_task("run", completed=start_round, phase="", status="")
        self.plan(phases)

    def _begin(self, phase: str) -> None:
        """Starts the sums from which the pace of a phase follows."""
        self._phase, self._rounds, self._elapsed = phase, 0, 0.0
        self._images, self._seconds = 0, 0.0

    def plan(self, phases: Sequence[Planned]) -> None:
        """Takes another plan: a phase ended before its rounds were over."""
        self._phases, self._total = phases, sum(phase.num_rounds for phase in phases)
        self._show(total=self._total)

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_) -> None:
        if self._live:
            self._live.stop()

    @contextmanager
    def compiling(self, phase: str) -> Iterator[None]:
        """Shows that a phase is being compiled; at the end, how long it took."""
        began = self._clock()
        self._show(phase=phase, status="compiling …")
        yield
        self._updated = self._clock()
        self.message(f"{phase}: compiled in {self._updated - began:.1f} s")
        self._show(status="first rounds …")

    def update(self, rows: Sequence[Mapping[str, Any]], images: int, seconds: float) -> None:
        """Shows a finished chunk of rounds, all of one phase.

        Args:
          rows: the rows of ``metrics.jsonl`` of these rounds.
          images: images that went forward through the model in these rounds.
          seconds: time that the rounds took.
        """
        last, now = rows[-1], self._clock()
        if last["phase"] != self._phase:
            self._begin(last["phase"])
        # Several runs as one program show the same rounds, one after the other.
        self._rounds += last["round"] - self._done
        self._elapsed += now - self._updated
        self._images, self._seconds = self._images + images, self._seconds + seconds
        self._done, self._updated = last["round"], now
        parts = [f"loss {units.loss(last.get('train_loss'))}"]
        for name, key in (("test acc", "test_accuracy"), ("val acc", "val_accuracy")):
            if last.get(key) is not None:
                parts.append(f"{name} {units.percent(last[key]):>6}")
        if self._seconds > 0:
            parts.append(f"{units.integer(self._images / self._seconds)} images/s")
        if self._done < self._total:
            parts.append(self._left())
        status = "  ".join(parts)
        self._show(completed=self._done, phase=self._phase, status=status)
        if last.get("test_accuracy") is not None:
            place = f"round {self._done:{len(str(self._total))}}/{self._total}"
            self.message(f"{place}  {self._phase:6}  {status}")

    def message(self, text: str) -> None:
        """Shows a line, above the bar if there is one."""
        if not self._quiet:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _show(self, **content: Any) -> None:
        if self._live:
            self._live.update(self._task, **content)

    def _left(self) -> str:
        end, work, later, present = 0, 0.0, 0, None
        for phase in self._phases:
            end += phase.num_rounds
            rounds = min(max(end - self._done, 0), phase.num_rounds)
            work += rounds * phase.work
            later += rounds if present is not None else 0
            present = present or (phase if self._done <= end else None)
        each = self._elapsed / self._rounds
        seconds = each * work / present.work if present is not None and present.work else 0.0
        return f"{'~' if later else ''}{units.duration(seconds)} left"


def _live_bar(console: Console) -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.fields[phase]}", markup=False),
        rich.progress.BarColumn(bar_width=None),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("{task.fields[status]}", markup=False),
        console=console,
        expand=True,
    )


def summary_table(summary: Mapping[str, Any]) -> str:
    """Returns a run's summary as a table, at most 80 columns wide; missing entries are left out.

    Args:
      summary: what ``zo_fl.run`` returns, and optionally ``workdir``.
    """
    rows = _of_phases(summary.get("phases") or []) + _of_privacy(summary.get("privacy") or {})
    for key, (label, show) in _SUMMARY.items():
        if summary.get(key) is not None:
            rows.append((label, show(summary[key])))
    width, lines = max((len(label) for label, _ in rows), default=0), []
    for label, text in rows:
        # Folded, not shortened: a path is there to be copied.
        parts = textwrap.wrap(text, WIDTH - width - 3, break_on_hyphens=False) or [""]
        names = [label, *[""] * (len(parts) - 1)]
        lines += [f" {name:{width}}  {part}" for name, part in zip(names, parts, strict=True)]
    rule = "─" * max(map(len, lines), default=0)
    return "\n".join([rule, *lines, rule])


def runs_table(summaries: Mapping[str, Mapping[str, Any]], path: Any, *, mean: bool = False) -> str:
    """Returns a line for each of several runs, with its accuracies in percent.

    Args:
      summaries: of the runs, by what tells them apart.
      path: folder of their folders.
      mean: whether to add their mean and standard deviation.
    """
    columns = {"pivot": "pivot_accuracy", "test": "final_accuracy", "gain": "delta_lo"}
    columns["best validation"] = "best_val_accuracy"
    lines, width = [], max(map(len, [*summaries, "mean"]))
    for name, summary in summaries.items():
        known = {label: summary[key] for label, key in columns.items() if summary[key] is not None}
        parts = [f"{label} {units.percent(reached)}" for label, reached in known.items()]
        if summary["diverged_round"] is not None:
            parts.append(f"diverged in round {summary['diverged_round']}")
        lines.append(f" {name:{width}}  {', '.join(parts)}")
    if mean:
        spread = {label: _spread(summaries.values(), key) for label, key in columns.items()}
        known = ", ".join(f"{label} {text}" for label, text in spread.items() if text)
        lines.append(f" {'mean':{width}}  {known}")
    return "\n".join([*lines, f" results in {path}"])


def _of_phases(phases: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Returns a line for each phase with its gain, where there are more than the pivot tells of."""
    rows, before = [], None
    for phase in phases if len(phases) > 2 else ():
        reached = phase["test_accuracy"]
        gain = "" if before is None else f"  ({units.points(reached - before)})"
        rows.append((f"after {phase['phase']}", units.percent(reached) + gain))
        before = reached
    return rows


def _of_privacy(revealed: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns a line for each phase that promises privacy, and one for those that do not."""
    rows = [
        (f"privacy of {phase}", f"epsilon {epsilon:.3g} at delta {revealed['delta']:g}")
        for phase, epsilon in revealed.get("epsilon", {}).items()
    ]
    without = ", ".join(revealed.get("not_private", ()))
    return [*rows, ("not private", without)] if without else rows


def _spread(summaries: Iterable[Mapping[str, Any]], field: str) -> str:
    """Returns mean(standard deviation) of a fraction, in percent."""
    values = [100 * summary[field] for summary in summaries if summary[field] is not None]
    if not values:
        return ""
    spread = f"({statistics.stdev(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread} %"


def _parts(seconds: Mapping[str, float]) -> str:
    """Returns the parts of a run's time in words, the longest first."""
    most_first = sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{part} {units.duration(spent)}" for part, spent in most_first)


_SUMMARY: dict[str, tuple[str, Callable[[Any], str]]] = {
    "pivot_accuracy": ("test accuracy at the pivot", units.percent),
    "final_accuracy": ("test accuracy at the end", units.percent),
    "delta_lo": ("gain after the pivot", units.points),
    "best_val_accuracy": ("best validation accuracy", units.percent),
    "uplink_bytes": ("sent by clients", units.num_bytes),
    "low_uplink_bytes": ("by one low-resource client", units.num_bytes),
    "downlink_bytes": ("sent to clients", units.num_bytes),
    "forward_passes": ("forward passes", units.integer),
    "wall_seconds": ("time", units.duration),
    "seconds": ("spent on", _parts),
    "workdir": ("results in", str),
}
