"""Draws accuracy against rounds over seeds, before and after the pivot: as the paper's Figure 3."""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from zo_fl.host.style import GREY, INK, decorate, plain
from zo_fl.host.units import is_number

from ..jobs import record
from . import drawing, paper, runs
from .runs import Point, Run, SweepRuns

_MANY = 7  # rows: more lines cannot be told apart in one panel
_PAPER_ROUNDS = (200, 500)


class Curve(NamedTuple):
    """Accuracy in % over the seeds of a point; ``pivot`` is the last round of the first phase."""

    rounds: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    pivot: int | None


_EMPTY = Curve(np.array([]), np.array([]), np.array([]), None)


class Panel(NamedTuple):
    """Axes with lines by label; the line labelled ``behind`` is drawn in grey."""

    title: str
    lines: dict[str, Point]
    behind: str = ""


def draw(sweep: SweepRuns, title: str) -> Figure | None:
    """Returns accuracy against rounds; None if no run was evaluated.

    Each column has a panel and each row a line. A single row has a line for each column; many rows
    have a panel each, with the reference behind.
    """
    found = ((point, _curve(sweep.of(*point))) for point in sweep.points())
    curves = {point: curve for point, curve in found if curve is not None}
    panels = [panel for panel in _panels(sweep) if any(p in curves for p in panel.lines.values())]
    if not panels:
        return None
    width = min(len(panels), 2 if len(panels) < 9 else 3)
    height = -(-len(panels) // width)
    figure = drawing.new_figure(title, 1.3 + (2.1 if width > 1 else 2.6) * height)
    grid = figure.subplots(height, width, sharex=True, sharey=True, squeeze=False)
    shown, rest = grid.flat[: len(panels)], grid.flat[len(panels) :]
    for axes, panel in zip(shown, panels, strict=True):
        decorate(axes)
        _draw_panel(axes, panel, curves, letters=60 // width)
        _mark_paper(axes, sweep, panel)
    for axes in rest:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("test accuracy, %")
    for axes in shown[-width:]:
        axes.set_xlabel("round")
        axes.tick_params(labelbottom=True)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, steps=[1, 2, 5, 10]))
    drawing.add_legend(figure, shown[0], "band: one standard deviation over seeds")
    return figure


def _panels(sweep: SweepRuns) -> list[Panel]:
    rows, columns, reference = sweep.rows, sweep.columns, sweep.record["reference"]
    if len(rows) == 1:
        return [Panel(rows[0], {column or rows[0]: (rows[0], column) for column in columns})]
    if len(rows) <= _MANY:
        return [Panel(column, {row: (row, column) for row in rows}) for column in columns]
    panels = []
    for row in rows:
        own = {column if len(columns) > 1 else "the panel's": (row, column) for column in columns}
        grey = {reference: (reference, columns[0])} if reference else {}
        panels.append(Panel(row, own | grey, reference))
    return panels


def _draw_panel(axes: Axes, panel: Panel, curves: Mapping[Point, Curve], letters: int) -> None:
    """Draws a panel's lines; ``letters`` is the room for a line of its title."""
    axes.set_title(plain(textwrap.fill(panel.title, letters)), fontsize=9, color=INK)
    labels = [label for label in panel.lines if label != panel.behind]
    colours = drawing.colours(labels) | {panel.behind: GREY}
    pivots = set()
    # Points that share a warm-up begin alike: the first is on top, dashed, so that others show.
    for i, (label, point) in enumerate(panel.lines.items()):
        # The legend is that of the first panel: an empty line keeps it whole.
        curve = curves.get(point, _EMPTY)
        dashed = label == panel.behind or (i == 0 and len(labels) > 1)
        look: dict[str, Any] = {"color": colours[label], "linestyle": "--" if dashed else "-"}
        look["zorder"] = 1.5 if label == panel.behind else 2.5 - 0.01 * i
        if len(curve.rounds) == 1:  # no line to see
            look |= {"marker": "o", "markersize": 4}
        axes.plot(curve.rounds, curve.mean, linewidth=1.6, label=plain(label), **look)
        low, high = curve.mean - curve.spread, curve.mean + curve.spread
        axes.fill_between(curve.rounds, low, high, color=colours[label], alpha=0.18, lw=0)
        pivots |= {curve.pivot} - {None}
    for i, pivot in enumerate(sorted(pivots)):
        label = "pivot" if i == 0 else None
        axes.axvline(pivot, color=INK, linewidth=1, linestyle=":", label=label)


def _mark_paper(axes: Axes, sweep: SweepRuns, panel: Panel) -> None:
    """Marks the paper's Figure 3 in panels of a split, if the runs may be compared with it."""
    if sweep.record["table"] != "Table 2" or "ZOWarmUp" not in panel.lines:
        return
    of_point = sweep.of(*panel.lines["ZOWarmUp"])
    config = next((run.config for run in of_point if run.config), {})
    for round_idx in _PAPER_ROUNDS:
        figure = paper.lookup("Figure 3", config, panel.title, str(round_idx))
        if figure and figure.mean is not None:
            label = "the paper, read off" if round_idx == _PAPER_ROUNDS[0] else None
            look = drawing.PAPER | {"color": INK, "linestyle": "none", "label": label}
            axes.plot([round_idx], [figure.mean], **look)


def _curve(of_point: Sequence[Run]) -> Curve | None:
    """Returns the curve over rounds where all seeds were evaluated, finished ones if any."""
    shown = runs.finished(of_point) or of_point
    rows = [[row for row in record.rows_of(run.folder) if "round" in row] for run in shown]
    curves = [
        {row["round"]: row["test_accuracy"] for row in one if is_number(row.get("test_accuracy"))}
        for one in rows
    ]
    common = sorted(set.intersection(*map(set, curves)))
    if not common:
        return None
    values = 100 * np.array([[curve[i] for i in common] for curve in curves], float)
    spread = values.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros(len(common))
    first = list(
        itertools.takewhile(lambda row: row.get("phase") == rows[0][0].get("phase"), rows[0])
    )
    pivot = first[-1]["round"] if len(first) < len(rows[0]) else None
    return Curve(np.array(common), values.mean(axis=0), spread, pivot)
