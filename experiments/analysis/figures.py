"""Draws the results of a sweep: as the paper's Figures 3 to 7, or as dots with bars.

Filled marks are ours: large the mean, bars and bands one standard deviation over seeds, small dots
single seeds. Hollow diamonds are the paper's, where the runs may be compared with it.
"""

import itertools
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from scipy.special import chdtri

from zo_fl.host import style
from zo_fl.host.style import FAINT, INK, decorate, plain

from . import comparison, curves, drawing, runs
from .comparison import Cell
from .drawing import number_in, words_before
from .runs import SweepRuns

_SEEDS = "large: mean and standard deviation over seeds; small: single seeds"
_X_LABELS = {"Figure 4": "round of the pivot", "Figure 6": "scale of the directions, tau"}
_MEASURES = {"seconds": "seconds a round", "validation": "final validation accuracy, %"}


@style.own
def write(sweep: SweepRuns, out: Path) -> list[Path]:
    """Writes NAME.png and NAME.svg of every figure of a sweep, and returns the PNGs.

    Raises:
      ConfigError: they cannot be written.
    """
    with runs.writing(out):
        return [drawing.save(figure, out / f"{name}.png") for name, figure in of(sweep).items()]


def of(sweep: SweepRuns, titled: bool = True) -> dict[str, Figure]:
    """Returns the figures of a sweep by name; none if nothing is finished or evaluated.

    Args:
      sweep: its runs.
      titled: whether each figure has a title; not if a heading has it.
    """
    cells = comparison.cells(sweep)
    title = sweep.record["title"] if titled else ""
    drawn = {}
    if any(cell.values or cell.num_nc for cell in cells):
        drawn[sweep.name] = _draw_results(sweep, cells, title)
    if figure := curves.draw(sweep, f"{title}: curves" if title else ""):
        drawn[f"{sweep.name}-curves"] = figure
    return drawn


def _draw_results(sweep: SweepRuns, cells: Sequence[Cell], title: str) -> Figure:
    table = sweep.record["table"]
    if table == "Figure 7":
        return draw_variance(sweep, cells, f"{title}: spread of the results" if title else "")
    if x_label := _X_LABELS.get(table) or sweep.record.get("axis"):
        return draw_lines(sweep, cells, title, x_label)
    return draw_dots(sweep, cells, title)


def draw_dots(sweep: SweepRuns, cells: Sequence[Cell], title: str) -> Figure:
    """Returns a line for each point: mean, one standard deviation, single seeds.

    The rows of a single column are sorted by their mean; the rows of several have colours and stand
    together by column.
    """
    if len(sweep.columns) == 1:
        ordered = sorted(cells, key=lambda cell: cell.mean() or -1.0, reverse=True)
        groups = [(cell.row, [cell]) for cell in ordered]
        colours = dict.fromkeys(sweep.rows, drawing.MAIN)
    else:
        groups = [(name, [c for c in cells if c.column == name]) for name in sweep.columns]
        colours = drawing.colours(sweep.rows)
    names = [textwrap.fill(name, 28) for name, _ in groups]
    lines = sum(max(len(g), n.count("\n") + 1) for (_, g), n in zip(groups, names, strict=True))
    figure = drawing.new_figure(title, 1.6 + 0.27 * lines)
    axes = figure.subplots()
    decorate(axes)
    middles, y = [], 0.0
    for _, group in groups:
        middles.append(y + (len(group) - 1) / 2)
        for cell in group:
            _draw_dot_line(axes, cell, y, colours[cell.row])
            y += 1
        y += 0.6 * (len(group) > 1)
    axes.set_yticks(middles, [plain(name) for name in names])
    axes.set_ylim(y - 0.4 - 0.6 * (len(sweep.columns) > 1), -0.6)  # the first on top
    axes.set_xlabel(_measure(sweep))
    if len(sweep.columns) > 1:
        for row, colour in colours.items():
            axes.plot([], [], "o", color=colour, label=plain(row))
    if any(cell.paper and cell.paper.mean is not None for cell in cells):
        axes.plot([], [], color=INK, linestyle="none", label="the paper", **drawing.PAPER)
    _mark_chance(axes, sweep, cells)
    drawing.add_legend(figure, axes, _SEEDS)
    return figure


def draw_lines(sweep: SweepRuns, cells: Sequence[Cell], title: str, x_label: str) -> Figure:
    """Returns accuracy against the number in each column's name, a line for each row.

    Words before the number make a panel. A row has a line in the panels in which it has a column; a
    column without a number is a level in all panels.
    """
    names = [name for name in dict.fromkeys(map(words_before, sweep.columns)) if name] or [""]
    figure = drawing.new_figure(title, 1.8 + 2.2 * len(names))
    panels = figure.subplots(len(names), sharey=True, squeeze=False)[:, 0]
    for name, axes in zip(names, panels, strict=True):
        decorate(axes)
        inside = [cell for cell in cells if words_before(cell.column) in (name, "")]
        numbers = {number_in(cell.column) for cell in inside}
        xs = sorted(x for x in numbers if not math.isnan(x))
        is_wide = bool(xs) and xs[0] > 0 and xs[-1] >= 20 * xs[0]
        width = xs[-1] - xs[0] if xs and not is_wide else 0.0
        for i, (row, colour) in enumerate(drawing.colours(sweep.rows).items()):
            of_row = [cell for cell in inside if cell.row == row]
            # Rows lie apart by a hair, or bars would hide each other.
            shift = (i - (len(sweep.rows) - 1) / 2) * 0.012 * width
            if any(words_before(cell.column) == name for cell in of_row):
                _draw_line(axes, of_row, shift, colour)
        if is_wide:  # numbers would crowd on a linear axis
            axes.set_xscale("log")
            axes.minorticks_off()
        if is_wide or len(names) == 1:
            axes.set_xticks(xs, [f"{x:g}" for x in xs])
        if len(names) > 1:
            axes.set_title(plain(name), loc="left", fontsize=10, color=INK)
    panels[-1].set_xlabel(x_label)
    figure.supylabel(_measure(sweep), fontsize=10, color=INK)
    drawing.add_legend(figure, list(panels), _SEEDS)
    return figure


def draw_variance(sweep: SweepRuns, cells: Sequence[Cell], title: str) -> Figure:
    """Returns the variance over seeds against S, with its 95 % interval (Figure 7)."""
    figure = drawing.new_figure(title, 4.0)
    axes = figure.subplots()
    decorate(axes)
    # Equal results have no place on a logarithmic axis.
    known = [cell for cell in cells if len(set(cell.values.values())) > 1]
    x = [number_in(cell.column) for cell in known]
    ends = np.array([variance_interval(cell) for cell in known]).reshape(-1, 3)
    look: dict[str, Any] = {"fmt": "o-", "capsize": 4, "color": drawing.MAIN}
    if known:
        label = "variance, 95 % interval"
        axes.errorbar(x, ends[:, 1], np.diff(ends).T, label=label, **look)
    told = [
        (number_in(cell.column), cell.paper.std**2)
        for cell in cells
        if cell.paper and cell.paper.std is not None
    ]
    if told:
        look = drawing.PAPER | {"color": INK, "linestyle": ":"}
        axes.plot(*zip(*told, strict=True), label="the paper, 3 seeds", **look)
    if not known and not told:
        axes.text(0.02, 0.9, "needs two seeds", transform=axes.transAxes, color=INK)
        return figure
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = sorted({number_in(column) for column in sweep.columns})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    axes.set_xlabel("directions a client and round, S")
    axes.set_ylabel("variance over seeds, points²")
    drawing.add_legend(figure, axes)
    return figure


def variance_interval(cell: Cell) -> tuple[float, float, float]:
    """Returns (low, variance, high): the 95 % interval of the variance over seeds.

    (n - 1) s^2 / chi^2, exact if accuracies are normal. With three seeds it spans a factor of 146.
    """
    freedom = len(cell.values) - 1
    variance = cell.std() ** 2
    high, low = chdtri(freedom, (0.025, 0.975))
    return freedom * variance / float(high), variance, freedom * variance / float(low)


def _mark_chance(axes: Axes, sweep: SweepRuns, cells: Sequence[Cell]) -> None:
    """Draws a line at chance if some runs have learned nothing."""
    classes = [run.num_classes for run in sweep.runs if run.num_classes]
    if classes and any(cell.num_at_chance for cell in cells):
        chance = 100 / max(classes)
        axes.axvline(chance, color=FAINT, linewidth=1, linestyle=":", label="chance", zorder=1)


def _draw_dot_line(axes: Axes, cell: Cell, y: float, colour: str) -> None:
    values = list(cell.values.values())
    if not values:
        text = "nc" if cell.num_nc else "missing"
        place = axes.get_yaxis_transform()
        axes.text(0.01, y, text, transform=place, va="center", fontsize=9, color=FAINT)
    else:
        axes.plot(values, [y] * len(values), "o", markersize=3, color=colour, alpha=0.45)
        look: dict[str, Any] = {"fmt": "o", "color": colour, "linewidth": 1.6}
        axes.errorbar([cell.mean() or 0.0], [y], xerr=[cell.std()], **look)
    if cell.paper and cell.paper.mean is not None:
        axes.plot([cell.paper.mean], [y], color=colour, **drawing.PAPER)


def _draw_line(axes: Axes, cells: Sequence[Cell], shift: float, colour: str) -> None:
    known = [cell for cell in cells if cell.values]
    # A column without a number has no place: a level.
    levels = [cell for cell in known if math.isnan(number_in(cell.column))]
    for cell, dashes in zip(levels, itertools.cycle(("--", ":", "-.")), strict=False):
        label = plain(f"{cell.row}, {cell.column}")
        axes.axhline(cell.mean() or 0.0, color=colour, linestyle=dashes, label=label)
    known = [cell for cell in known if cell not in levels]
    if known:
        x = [number_in(cell.column) + shift for cell in known]
        y, bars = [cell.mean() or 0.0 for cell in known], [cell.std() for cell in known]
        axes.errorbar(x, y, bars, fmt="o-", color=colour, linewidth=1.6, label=plain(known[0].row))
        for place, cell in zip(x, known, strict=True):
            values = list(cell.values.values())
            axes.plot([place] * len(values), values, "o", markersize=3, color=colour, alpha=0.45)
    told = [
        (number_in(cell.column), cell.paper.mean)
        for cell in cells
        if cell.paper and cell.paper.mean is not None
    ]
    if told:
        look = drawing.PAPER | {"color": colour, "linestyle": ":", "linewidth": 1.2}
        label = plain(f"{cells[0].row}, the paper")
        axes.plot(*zip(*told, strict=True), label=label, **look)


def _measure(sweep: SweepRuns) -> str:
    return _MEASURES.get(sweep.record["quantity"], "final test accuracy, %")
