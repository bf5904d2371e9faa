"""Draws accuracy against rounds over seeds, before and after the pivot: the paper's Figure 3."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from . import figure_style, paper, runs
from .figure_style import INK, plain
from .runs import Run, SweepRuns

ROWS = ("High Res Only", "High Res Only, all rounds", "ZOWarmUp")


def draw(sweep: SweepRuns) -> Figure:
    """Returns accuracy against rounds, a panel a column, the pivot marked (Figure 3)."""
    columns = sweep.columns
    width = min(len(columns), 2)
    height = -(-len(columns) // width)
    figure = figure_style.new_figure(f"{sweep.record['title']}: curves", 1.3 + 2.5 * height)
    grid = figure.subplots(height, width, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for axes, column in zip(panels, columns, strict=False):
        figure_style.decorate(axes)
        _draw_panel(axes, sweep, column)
    for axes in panels[len(columns) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("test accuracy, %")
    for axes in panels[max(len(columns) - width, 0) : len(columns)]:
        axes.set_xlabel("round")
        axes.tick_params(labelbottom=True)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10]))
    figure_style.add_legend(figure, panels[0], "band: one standard deviation over seeds")
    return figure


def _draw_panel(axes: Axes, sweep: SweepRuns, column: str) -> None:
    axes.set_title(plain(column), fontsize=10, color=INK)
    shown = [row for row in ROWS if row in sweep.rows]
    config = {}
    # The warm-up is the beginning of both: the one that stops there is drawn on top.
    for row in reversed(shown):
        finished = runs.finished(sweep.of(row, column))
        rounds, center, spread = _mean_curve(finished)
        if not len(rounds):
            continue
        config = finished[0].config if row == "ZOWarmUp" else config
        colour = figure_style.colours(ROWS)[row]
        axes.fill_between(rounds, center - spread, center + spread, color=colour, alpha=0.18, lw=0)
        style = "--" if row == "High Res Only" else "-"
        axes.plot(rounds, center, linestyle=style, color=colour, linewidth=1.6, label=plain(row))
    pivot = runs.dotted(config, "warmup.num_rounds")
    if pivot is not None:
        axes.axvline(pivot, color=INK, linewidth=1, linestyle=":", label="pivot")
    for round_idx in (200, 500):
        figure = paper.lookup("Figure 3", config, column, str(round_idx))
        if figure and figure.mean is not None:
            label = "the paper, read off" if round_idx == 200 else None
            style = figure_style.PAPER | {"color": INK, "linestyle": "none", "label": label}
            axes.plot([round_idx], [figure.mean], **style)


def _mean_curve(finished: Sequence[Run]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (rounds, mean, standard deviation) over seeds, where all seeds were evaluated."""
    curves = []
    for run in finished:
        rows = runs.rows_of(run)
        curves.append({row["round"]: row.get("test_accuracy") for row in rows if "round" in row})
    common = sorted(
        round_idx
        for round_idx in (set.intersection(*map(set, curves)) if curves else ())
        if all(curve[round_idx] is not None for curve in curves)
    )
    values = 100 * np.array([[curve[i] for i in common] for curve in curves], float)
    if not common:
        return np.array([]), np.array([]), np.array([])
    spread = values.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros(len(common))
    return np.array(common), values.mean(axis=0), spread
