"""A run's accuracy and loss against rounds, as a picture."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from zo_fl.host.style import COLOURS, GREY, INK, SHADES, decorate, new_figure, own
from zo_fl.host.units import is_number

Rows = Sequence[Mapping[str, Any]]
_LETTER = 0.014  # its width, as a share of the axes'


@own
def draw_curves(rows: Rows, path: str | Path, title: str, pivot_round: int | None = None) -> None:
    """Draws test and validation accuracy above train and test loss, and writes a PNG.

    Phases are shaded and named; the pivot is a vertical line. Values that are missing, null or not
    finite leave gaps.

    Args:
      rows: of ``read_metrics``.
      path: the picture to write.
      title: above it, one line.
      pivot_round: rounds done at the pivot, or None.
    """
    figure = new_figure(7.2, 5.4, title)
    accuracy, loss = figure.subplots(2, 1, sharex=True)
    val = {"color": COLOURS[4], "linewidth": 1.4, "linestyle": "--"}
    test = {"color": COLOURS[0], "linewidth": 2, "label": "test"}
    _line(accuracy, rows, "val_accuracy", label="validation", **val)
    _line(accuracy, rows, "test_accuracy", **test)
    for i, (name, start, end) in enumerate(_phases(rows)):
        # A line for each phase: their losses are means over different clients.
        of_phase = [row for row in rows if start < row["round"] <= end]
        label = "_" * (i > 0) + "train, each round"  # matplotlib's legend leaves out "_..."
        _line(loss, of_phase, "train_loss", label=label, color=GREY, linewidth=1)
        for axes in (accuracy, loss):
            axes.axvspan(start, end, color=SHADES[i % 2], linewidth=0, zorder=0)
        # A name that is wider than its phase would run into the next.
        if (end - start) / rows[-1]["round"] > _LETTER * len(name):
            place = {"ha": "center", "va": "bottom", "transform": accuracy.get_xaxis_transform()}
            accuracy.text((start + end) / 2, 1.01, name, fontsize=9, color=INK, **place)
    _line(loss, rows, "test_loss", **test | {"label": "_test"})
    accuracy.set_ylabel("accuracy")
    accuracy.yaxis.set_major_formatter(lambda y, _: f"{100 * y:g} %")
    loss.set_ylabel("loss")
    loss.set_xlabel("round")
    loss.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    for axes in (accuracy, loss):
        if pivot_round is not None:
            axes.axvline(pivot_round, color=INK, linewidth=1, linestyle=":", zorder=1)
        decorate(axes)
    _limit_loss(loss, rows)
    if any(axes.get_legend_handles_labels()[0] for axes in (accuracy, loss)):
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path)


def _line(axes: Axes, rows: Rows, key: str, **look: Any) -> None:
    points = [(row["round"], row[key]) for row in rows if key in row]
    if points:
        x, y = zip(*points, strict=True)
        y = [value if is_number(value) else math.nan for value in y]
        few = len(points) == 1 or (len(points) <= 25 and key != "train_loss")
        axes.plot(x, y, marker="o" if few else None, markersize=3.5, **look)


def _phases(rows: Rows) -> list[tuple[str, int, int]]:
    """Returns (name, round it starts after, last round) of every stretch of one phase."""
    phases = []
    for name, group in itertools.groupby(rows, key=lambda row: row["phase"]):
        rounds = [row["round"] for row in group]
        phases.append((name, rounds[0] - 1, rounds[-1]))
    return phases


def _limit_loss(axes: Axes, rows: Rows) -> None:
    """Cuts off a diverging end: it would press everything else flat."""
    values = sorted(
        row[key] for row in rows for key in ("train_loss", "test_loss") if is_number(row.get(key))
    )
    if values:
        typical = values[int(0.9 * (len(values) - 1))]
        if values[-1] > 4 * typical > 0:
            axes.set_ylim(values[0] - 0.1 * typical, 2 * typical)
