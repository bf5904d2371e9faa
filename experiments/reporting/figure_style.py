"""How the figures of sweeps look: as the curves of a single run do."""

import math
import re
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zo_fl.host import style
from zo_fl.host.style import FAINT, INK

decorate = style.decorate
# The same method, the same colour in every figure.
_METHODS = {"ZOWarmUp": 0, "High Res Only": 1, "High Res Only, all rounds": 2}
MAIN = style.COLOURS[0]
PAPER: dict[str, Any] = {
    "marker": "D",
    "markersize": 6.5,
    "markerfacecolor": "white",
    "markeredgewidth": 1.4,
    "zorder": 4,
}
WIDTH = 5.4  # of a sweep's figure, in inches: still read on a telephone


def new_figure(title: str, height: float, width: float = 7.2) -> Figure:
    """Returns an empty figure of a size in inches, which pyplot knows nothing of."""
    longest = round(10 * width)
    shown = title if len(title) <= longest else title[: longest - 1] + "…"
    figure = style.new_figure(width, height, shown)
    layout = figure.get_layout_engine()
    if layout is not None:
        layout.set(w_pad=0.08, h_pad=0.08)  # pyright: ignore[reportCallIssue]
    return figure


def add_legend(figure: Figure, axes: Axes | Sequence[Axes], note: str = "") -> None:
    """Puts the legend below the axes, where nothing is drawn, and a line of explanation.

    Args:
      figure: theirs.
      axes: of several, what has the same name has one entry.
      note: the explanation.
    """
    found: dict[str, Any] = {}
    for one in [axes] if isinstance(axes, Axes) else axes:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    entries = [(handle, label) for label, handle in found.items()]
    shown = sorted(entries, key=lambda entry: "the paper" in entry[1])  # ours first
    if shown:
        # A letter of 9 points is about 5 wide, and the mark before it 35.
        longest = 35 + 5 * max(len(label) for _, label in shown)
        legend = figure.legend(
            [handle for handle, _ in shown],
            [label for _, label in shown],
            loc="outside lower center",
            ncols=max(1, min(len(shown), 3, int(72 * figure.get_figwidth() / longest))),
            frameon=False,
            fontsize=9,
            labelcolor=INK,
            title=note or None,
            title_fontproperties={"size": 9},
        )
        legend.get_title().set_color(INK)
    elif note:
        figure.supxlabel(note, fontsize=9, color=FAINT)


def colours(rows: Sequence[str]) -> dict[str, str]:
    """Returns a colour a row; different ones as far as there are enough."""
    all_of_them = style.COLOURS
    free = [i for i in range(len(all_of_them)) if i not in {_METHODS.get(row) for row in rows}]
    chosen, taken = {}, 0
    for row in dict.fromkeys(rows):
        if row not in _METHODS:
            taken += 1
        chosen[row] = all_of_them[_METHODS.get(row, free[(taken - 1) % len(free)])]
    return chosen


def words_before(text: str) -> str:
    """Returns what is before the number in a column's name, ``tau`` of ``tau 0.25``; "" if none."""
    words, *number = re.split(r"\d", text, maxsplit=1)
    return words.strip() if number else ""


def number_in(text: str) -> float:
    """Returns the first number of a column's name, ``tau 0.25``; NaN if there is none."""
    found = re.search(r"\d+(?:\.\d+)?(?:e-?\d+)?", text)
    return float(found.group()) if found else math.nan
