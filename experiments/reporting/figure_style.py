"""How the figures of sweeps look: as the curves of a single run do."""

import math
import re
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's palette, which people of any colour vision can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# The same method, the same colour in every figure.
_METHODS = {"ZOWarmUp": 0, "High Res Only": 1, "High Res Only, all rounds": 2}
MAIN = _COLOURS[0]
INK, FAINT = "#444444", "#767676"
PAPER: dict[str, Any] = dict(
    marker="D", markersize=6.5, markerfacecolor="white", markeredgewidth=1.4, zorder=4
)
_WIDTH = 7.2


def new_figure(title: str, height: float) -> Figure:
    """Returns an empty figure of a height in inches, which pyplot knows nothing of."""
    figure = Figure(figsize=(_WIDTH, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    layout = figure.get_layout_engine()
    if layout is not None:
        layout.set(w_pad=0.08, h_pad=0.08)  # pyright: ignore[reportCallIssue]
    figure.suptitle(plain(title if len(title) <= 70 else title[:69] + "…"), fontsize=11, color=INK)
    return figure


def decorate(axes: Axes) -> None:
    """Gives axes the style of a run's curves."""
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, colors=INK)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(INK)
        label.set_fontsize(10)


def add_legend(figure: Figure, axes: Axes, note: str = "") -> None:
    """Puts the legend below the axes, where nothing is drawn, and a line of explanation."""
    found = zip(*axes.get_legend_handles_labels(), strict=True)
    shown = sorted(found, key=lambda entry: "the paper" in entry[1])  # ours first
    if shown:
        legend = figure.legend(
            [handle for handle, _ in shown],
            [label for _, label in shown],
            loc="outside lower center",
            ncols=min(len(shown), 3),
            frameon=False,
            fontsize=9,
            labelcolor=INK,
            title=note or None,
            title_fontproperties={"size": 8},
        )
        legend.get_title().set_color(INK)
    elif note:
        figure.supxlabel(note, fontsize=8, color=FAINT)


def colours(rows: Sequence[str]) -> dict[str, str]:
    """Returns a colour a row; different ones as far as there are enough."""
    free = [i for i in range(len(_COLOURS)) if i not in {_METHODS.get(row) for row in rows}]
    chosen, taken = {}, 0
    for row in rows:
        if row not in _METHODS:
            taken += 1
        chosen[row] = _COLOURS[_METHODS.get(row, free[(taken - 1) % len(free)])]
    return chosen


def plain(text: str) -> str:
    """Returns text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")


def number_in(text: str) -> float:
    """Returns the first number of a column's name, ``tau 0.25``; NaN if there is none."""
    found = re.search(r"\d+(?:\.\d+)?(?:e-?\d+)?", text)
    return float(found.group()) if found else math.nan
