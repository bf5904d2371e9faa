"""What the runs of a sweep say: means and spreads over seeds, differences paired by seed.

Accuracies are in percent here, differences in points.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import scipy.stats

from zo_fl.host.units import is_number

from . import paper, runs
from .runs import Run, SweepRuns

_CHANCE = 1.1  # times chance: at most this is no convergence


class Interval(NamedTuple):
    """A mean difference of n pairs and half the width of its 95 % interval (None for n = 1)."""

    mean: float
    half_width: float | None
    n: int


class Cell(NamedTuple):
    """One point of a sweep, over its seeds.

    Attributes:
      row, column: of the point.
      values: of each seed that converged, by seed.
      gains: ``delta_lo`` of the same, in points; of runs with a pivot.
      num_nc: seeds that are finished but did not converge.
      num_seeds: that the sweep has.
      paper: the paper's result, if these runs may be compared with it.
      difference: to the sweep's reference row, paired by seed.
    """

    row: str
    column: str
    values: dict[int, float]
    gains: list[float]
    num_nc: int
    num_seeds: int
    paper: paper.Figure | None
    difference: Interval | None


def cells(sweep: SweepRuns) -> list[Cell]:
    """Returns the cells of a sweep, row by row."""
    points = dict.fromkeys((run.row, run.column) for run in sweep.runs)
    return [_cell(sweep, row, column) for row, column in points]


def converged(run: Run) -> bool:
    """Returns whether a finished run did: losses stayed finite, and it beats chance by a tenth."""
    accuracy = run.summary.get("final_accuracy")
    if run.summary.get("diverged_round") is not None or not is_number(accuracy):
        return False
    return run.num_classes is None or accuracy >= _CHANCE / run.num_classes


def paired(ours: Mapping[int, float], reference: Mapping[int, float]) -> Interval | None:
    """Returns the mean of ours - reference over the seeds of both, and Student's 95 % interval."""
    both = sorted(ours.keys() & reference.keys())
    differences = [ours[seed] - reference[seed] for seed in both]
    n = len(differences)
    if n == 0:
        return None
    if n == 1:
        return Interval(differences[0], None, 1)
    # Not ttest_rel's interval: of equal differences, as two identical methods have, it is NaN.
    half_width = float(scipy.stats.t.ppf(0.975, n - 1) * scipy.stats.sem(differences))
    return Interval(statistics.fmean(differences), half_width, n)


def mean(values: Sequence[float]) -> float | None:
    """Returns the mean, None of nothing."""
    return statistics.fmean(values) if values else None


def std(values: Sequence[float]) -> float | None:
    """Returns the standard deviation of a sample (n - 1), None of fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def mean_std(values: Sequence[float], digits: int = 1) -> str:
    """Returns ``24.8(4.8)`` as the paper writes it; no spread of a single value."""
    if not values:
        return "–"
    spread = std(values)
    return f"{mean(values):.{digits}f}".replace("-", "−") + (
        "" if spread is None else f"({spread:.{digits}f})"
    )


def _cell(sweep: SweepRuns, row: str, column: str) -> Cell:
    of_point = sweep.of(row, column)
    finished = runs.finished(of_point)
    timed = sweep.record["quantity"] == "seconds"  # too few rounds to learn
    good = [run for run in finished if timed or converged(run)]
    config = next((run.config for run in of_point if run.config), {})
    reference = sweep.record["reference"]
    difference = None
    values = _values(sweep, good)
    if reference and row != reference:
        others = [run for run in runs.finished(sweep.of(reference, column)) if converged(run)]
        difference = paired(values, _values(sweep, others))
    gains = [run.summary.get("delta_lo") for run in good]
    return Cell(
        row,
        column,
        values,
        [100 * gain for gain in gains if is_number(gain)],
        len(finished) - len(good),
        len(of_point),
        paper.lookup(sweep.record["table"], config, row, column),
        difference,
    )


def _values(sweep: SweepRuns, good: Sequence[Run]) -> dict[int, float]:
    """Returns what a cell shows of each run, by seed."""
    if sweep.record["quantity"] == "seconds":
        seconds = {run.seed: runs.seconds_a_round(run) for run in good}
        return {seed: value for seed, value in seconds.items() if value is not None}
    return {run.seed: 100 * run.summary["final_accuracy"] for run in good}
