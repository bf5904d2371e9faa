"""A run's accuracy and loss against rounds, as a picture."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from zo_fl.host import style
from zo_fl.host.units import is_number

_TEST, _VAL, _TRAIN = style.COLOURS[0], style.COLOURS[4], style.GREY
_TEST_NAME, _VAL_NAME, _TRAIN_NAME = "test", "validation", "train, each round"

Rows = Sequence[Mapping[str, Any]]


def draw_curves(rows: Rows, path: str | Path, title: str, pivot_round: int | None = None) -> None:
    """Draws test and validation accuracy above train and test loss, and writes a PNG.

    Phases are shaded and named; the pivot is a vertical line. Values that are missing, null or not
    finite leave gaps.

    Args:
      rows: what ``read_metrics`` returns.
      path: the picture to write.
      title: above it, one line.
      pivot_round: rounds done at the pivot, or None.
    """
    # A path as a title keeps its end, which tells runs apart.
    figure = style.new_figure(7.2, 5.4, title if len(title) <= 64 else "…" + title[-63:])
    accuracy, loss = figure.subplots(2, 1, sharex=True)
    _line(accuracy, rows, "val_accuracy", _VAL_NAME, color=_VAL, linewidth=1.4, linestyle="--")
    _line(accuracy, rows, "test_accuracy", _TEST_NAME, color=_TEST, linewidth=2)
    for _, start, end in _phases(rows):  # a line each: phases average over different clients
        of_phase = [row for row in rows if start < row["round"] <= end]
        _line(loss, of_phase, "train_loss", _TRAIN_NAME, color=_TRAIN, linewidth=1)
    _line(loss, rows, "test_loss", _TEST_NAME, color=_TEST, linewidth=2)
    accuracy.set_ylabel("accuracy")
    accuracy.yaxis.set_major_formatter(lambda y, _: f"{100 * y:g} %")
    loss.set_ylabel("loss")
    loss.set_xlabel("round")
    loss.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if rows:
        first, last = rows[0]["round"], rows[-1]["round"]
        accuracy.set_xlim(first - 1, max(last + 0.01 * (last - first), first + 1))
    else:
        accuracy.set_xlim(0, 1)
    for axes in (accuracy, loss):
        _decorate(axes, rows, pivot_round)
    _name_phases(accuracy, rows, pivot_round)
    _limit_loss(loss, rows)
    handles = {line.get_label(): line for line in (*accuracy.lines, *loss.lines)}
    names = [name for name in (_TEST_NAME, _VAL_NAME, _TRAIN_NAME) if name in handles]
    if names:
        # Below the axes, where no curve can be.
        figure.legend(
            [handles[name] for name in names],
            names,
            loc="outside lower center",
            ncols=len(names),
            frameon=False,
            fontsize=9,
        )
    figure.savefig(path)


def _line(axes: Axes, rows: Rows, key: str, label: str, **look: Any) -> None:
    points = [(row["round"], row[key]) for row in rows if key in row]
    if not points:
        return
    x, y = zip(*points, strict=True)
    y = [value if is_number(value) else math.nan for value in y]
    # Markers while evaluations are few: one alone would be no line.
    few = (len(points) <= 25 and key != "train_loss") or len(points) == 1
    axes.plot(x, y, label=label, marker="o" if few else None, markersize=3.5, **look)


def _decorate(axes: Axes, rows: Rows, pivot_round: int | None) -> None:
    if not axes.lines:
        axes.text(
            0.02, 0.9, "not measured yet", transform=axes.transAxes, va="top", color=style.INK
        )
        axes.set_yticks([])
    for index, (_, start, end) in enumerate(_phases(rows)):
        axes.axvspan(start, end, color=style.SHADES[index % 2], linewidth=0, zorder=0)
    if pivot_round is not None:
        axes.axvline(pivot_round, color=style.INK, linewidth=1, linestyle=":", zorder=1)
    style.decorate(axes)


def _name_phases(axes: Axes, rows: Rows, pivot_round: int | None) -> None:
    """Writes the phases' names and the pivot's round above the axes."""
    low, high = axes.get_xlim()
    look: dict[str, Any] = {"va": "bottom", "fontsize": 9, "color": style.INK}
    look["transform"] = axes.get_xaxis_transform()
    phases = _phases(rows)
    wide = [phase for phase in phases if phase[2] - phase[1] > 0.12 * (high - low)]
    for name, start, end in wide:
        axes.text((start + end) / 2, 1.01, name, ha="center", **look)
    if pivot_round is not None and low <= pivot_round <= high:
        place = (pivot_round - low) / (high - low)
        align = "left" if place < 0.1 else "right" if place > 0.9 else "center"
        axes.text(pivot_round, 1.08, f"pivot, round {pivot_round}", ha=align, **look)


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
