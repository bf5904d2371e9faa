"""The types that a sweep file returns, and the names that several of them share.

A sweep file exports ``get_sweep(config) -> Sweep``. It reads the resolved config and never writes
to it: the numbers of a sweep scale with those of the config, so that each also runs on the
quickstart.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

HIGH_RES_ONLY = "High Res Only"
ZOWARMUP = "ZOWarmUp"
SPLITS = (0.1, 0.3, 0.5, 0.7, 0.9)


class Point(NamedTuple):
    """One cell of a table: its row, its column, and the fields that make it (dotted names)."""

    row: str
    column: str
    overrides: dict[str, Any]


class Sweep(NamedTuple):
    """A table of experiments.

    Attributes:
      title: what is compared, one line.
      table: the table or figure of the paper (a name in experiments/analysis/paper.json), or "".
      points: in the order of the table's rows and columns.
      reference: the row that others are compared to, paired by seed; "" for none.
      quantity: what a cell shows: ``accuracy`` on the test set, ``validation`` where something is
        tuned, or ``seconds`` (a round).
      axis: what the number in a column's name says, where results are drawn against it; words
        before the number are the name of a panel, and a column without them is in all panels.
    """

    title: str
    table: str
    points: list[Point]
    reference: str = ""
    quantity: str = "accuracy"
    axis: str = ""


class Step(NamedTuple):
    """A sweep of a plan.

    Attributes:
      name: its folder.
      get_sweep: ``resolved config -> Sweep``, as a sweep file exports it.
      seeds: those that it is worth at this place of the plan.
    """

    name: str
    get_sweep: Callable[[ConfigDict], Sweep]
    seeds: range


class Plan(NamedTuple):
    """Sweeps in the order of their worth; a plan file exports ``get_plan() -> Plan``.

    Attributes:
      title: what is asked, one line.
      config: name of the config that all runs share.
      steps: the most worth first; a sweep may come again with more seeds.
    """

    title: str
    config: str
    steps: list[Step]


def split_name(high_fraction: float) -> str:
    """Returns the paper's name of a split: ``10/90``."""
    high = round(100 * high_fraction)
    return f"{high}/{100 - high}"


def rate_of_equal_norm(
    rate: float, tau: tuple[float, float] = (1.0, 1.0), steps: tuple[int, int] = (1, 1)
) -> float:
    """Returns the rate at which a zeroth-order round moves the model as far as at ``rate``.

    The norm of an update is proportional to ``rate * tau^2 * sqrt(steps)`` (``configs/base.py``):
    where these vary at a fixed rate, it is the step size that is compared. ``tau`` and the local
    ``steps`` are given before and after.
    """
    return rate * (tau[0] / tau[1]) ** 2 * math.sqrt(steps[0] / steps[1])


def total_rounds(config: Any) -> int:
    """Returns the rounds of both phases together."""
    return config.warmup.num_rounds + config.zo.num_rounds


def pivot_at(config: ConfigDict, share: float) -> dict[str, int]:
    """Returns the overrides that put the pivot at a share of all rounds; the total stays."""
    total = total_rounds(config)
    warmup = min(max(round(share * total), 1), total - 1)
    return {"warmup.num_rounds": warmup, "zo.num_rounds": total - warmup}
