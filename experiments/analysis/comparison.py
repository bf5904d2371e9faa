"""The results of a sweep: means and spreads over seeds, differences paired by seed.

Accuracies are in percent here, differences in points.
"""

import math
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

from scipy.special import stdtrit

from zo_fl.host.units import NONE

from . import paper, runs
from .runs import Run, SweepRuns

_CHANCE = 1.1  # times chance: below it, a run has learned nothing
# Quantity of a sweep -> factor, number of a run.
_QUANTITIES: dict[str, tuple[float, Callable[[Run], float | None]]] = {
    "seconds": (1, runs.seconds_a_round),
    "validation": (100, runs.last_validation),
    "accuracy": (100, lambda run: run.summary["final_accuracy"]),
}


class Interval(NamedTuple):
    """A mean difference of n pairs and half the width of its 95 % interval (None for n = 1)."""

    mean: float
    half_width: float | None
    n: int


class Cell(NamedTuple):
    """One point of a sweep, over its seeds."""

    row: str
    column: str
    values: dict[Hashable, float]  # result of each seed whose loss stayed finite, by seed
    gains: list[float]  # delta_lo of the same seeds in points, for runs with a pivot
    num_nc: int  # finished seeds whose loss did not stay finite
    num_at_chance: int  # seeds in values that have learned nothing
    num_seeds: int  # of the sweep
    paper: paper.Figure | None  # if these runs may be compared with it
    differs: tuple[str, ...]  # in setting, if the paper has a result but they may not
    difference: Interval | None  # to the sweep's reference row, paired by seed

    def mean(self) -> float | None:
        """Returns the mean over seeds; None without any."""
        return mean(list(self.values.values()))

    def std(self) -> float:
        """Returns the standard deviation over seeds; 0 of fewer than two."""
        return std(list(self.values.values())) or 0.0


def cells(sweep: SweepRuns) -> list[Cell]:
    """Returns the cells of a sweep, row by row."""
    return [_cell(sweep, row, column) for row, column in sweep.points()]


def converged(run: Run) -> bool:
    """Returns whether a finished run's loss stayed finite.

    Only these runs count. Leaving out others would drop pairs by their result.
    """
    return run.summary.get("diverged_round") is None


def at_chance(run: Run) -> bool:
    """Returns whether a run that converged does not beat chance by a tenth."""
    return run.num_classes is not None and run.summary["final_accuracy"] < _CHANCE / run.num_classes


def paired(ours: Mapping[Hashable, float], reference: Mapping[Hashable, float]) -> Interval | None:
    """Returns the mean of ours - reference over the seeds of both, and Student's 95 % interval.

    mean +- t(0.975, n - 1) * s / sqrt(n), s the standard deviation of the n differences.
    """
    differences = [ours[seed] - reference[seed] for seed in ours if seed in reference]
    if not differences:
        return None
    n, spread = len(differences), std(differences)
    half = None if spread is None else float(stdtrit(n - 1, 0.975)) * spread / math.sqrt(n)
    return Interval(statistics.fmean(differences), half, n)


def mean(values: Sequence[float]) -> float | None:
    """Returns the mean; None of nothing."""
    return statistics.fmean(values) if values else None


def std(values: Sequence[float]) -> float | None:
    """Returns the standard deviation of a sample (n - 1); None of fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def mean_std(values: Sequence[float], digits: int = 1) -> str:
    """Returns ``24.8(4.8)`` as the paper writes it; a single value has no spread."""
    if not values:
        return NONE
    spread = std(values)
    text = f"{mean(values):.{digits}f}".replace("-", "−")
    return text if spread is None else f"{text}({spread:.{digits}f})"


def _cell(sweep: SweepRuns, row: str, column: str) -> Cell:
    of_point = sweep.of(row, column)
    finished = runs.finished(of_point)
    timed = sweep.record["quantity"] == "seconds"  # too few rounds to learn
    good = finished if timed else [run for run in finished if converged(run)]
    values = _values(sweep, good)
    figure, differs = _paper(sweep, of_point, row, column)
    difference, reference = None, sweep.record["reference"]
    if reference and row != reference:
        others = [run for run in runs.finished(sweep.of(reference, column)) if converged(run)]
        difference = paired(values, _values(sweep, others))
    return Cell(
        row,
        column,
        values,
        gains=[100 * gain for gain in runs.numbers(good, "delta_lo")],
        num_nc=len(finished) - len(good),
        num_at_chance=0 if timed else sum(map(at_chance, good)),
        num_seeds=len(of_point),
        paper=figure,
        differs=differs,
        difference=difference,
    )


def _paper(
    sweep: SweepRuns, of_point: Sequence[Run], row: str, column: str
) -> tuple[paper.Figure | None, tuple[str, ...]]:
    """Returns the paper's result if every run has its setting, and the differences."""
    table = sweep.record["table"]
    known = [paper.known(table, run.config, row, column) for run in of_point if run.config]
    differs = dict.fromkeys(phrase for one in known if one for phrase in one.differences)
    compared = bool(known) and all(known) and not differs
    return known[0].figure if compared and known[0] else None, tuple(differs)


def _values(sweep: SweepRuns, good: Sequence[Run]) -> dict[Hashable, float]:
    """Returns the number that a cell shows for each run, by seed."""
    scale, read = _QUANTITIES.get(sweep.record["quantity"], _QUANTITIES["accuracy"])
    found = {run.seed: read(run) for run in good}
    return {seed: scale * value for seed, value in found.items() if value is not None}
