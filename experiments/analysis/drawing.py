"""The look of all figures here: sizes, colours, legends, files, and names beside marks."""

import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.path import Path as Line
from matplotlib.transforms import Bbox

from zo_fl.host import style
from zo_fl.host.style import FAINT, INK

WIDTH = 5.4  # inches: still read on a telephone
MAIN = style.COLOURS[0]
PAPER: dict[str, Any] = {
    "marker": "D",
    "markersize": 6.5,
    "markerfacecolor": "white",
    "markeredgewidth": 1.4,
    "zorder": 4,
}
# The same method has the same colour in every figure.
_METHODS = {"ZOWarmUp": 0, "High Res Only": 1, "High Res Only, all rounds": 2}
# The same picture is the same file.
_SAME_FILE: Any = {"svg.hashsalt": "zo_fl", "svg.fonttype": "path"}


def new_figure(title: str, height: float, width: float = WIDTH) -> Figure:
    """Returns an empty figure of a size in inches, unknown to pyplot."""
    longest = round(10 * width)
    shown = title if len(title) <= longest else title[: longest - 1] + "…"
    figure = style.new_figure(width, height, shown)
    layout: Any = figure.get_layout_engine()
    layout.set(w_pad=0.08, h_pad=0.08)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Writes a figure as PNG and as SVG, and returns the path of the PNG."""
    with matplotlib.rc_context(_SAME_FILE):
        figure.savefig(path)
        figure.set_layout_engine("none")  # laying out again would take half of the time
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    return path


def add_legend(figure: Figure, axes: Axes | Sequence[Axes], note: str = "") -> None:
    """Puts one legend of all axes below them, an entry a name, and a line of explanation."""
    found: dict[str, Any] = {}
    for one in [axes] if isinstance(axes, Axes) else axes:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    labels = sorted(found, key=lambda label: "the paper" in label)  # ours first
    if labels:
        # A letter of 9 points is about 5 wide, and the mark before it 35.
        longest = 35 + 5 * max(map(len, labels))
        legend = figure.legend(
            [found[label] for label in labels],
            labels,
            loc="outside lower center",
            ncols=max(1, min(len(labels), 3, int(72 * figure.get_figwidth() / longest))),
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
    """Returns a colour for each row; different ones as far as there are enough."""
    free = [i for i in range(len(style.COLOURS)) if i not in {_METHODS.get(row) for row in rows}]
    others = [row for row in dict.fromkeys(rows) if row not in _METHODS]
    places = _METHODS | {row: free[i % len(free)] for i, row in enumerate(others)}
    return {row: style.COLOURS[places[row]] for row in rows}


def words_before(text: str) -> str:
    """Returns the words before the number in a column's name, ``tau`` of ``tau 0.25``, or ""."""
    words, *number = re.split(r"\d", text, maxsplit=1)
    return words.strip() if number else ""


def number_in(text: str) -> float:
    """Returns the first number in a column's name, 0.25 of ``tau 0.25``, or NaN."""
    found = re.search(r"\d+(?:\.\d+)?(?:e-?\d+)?", text)
    return float(found.group()) if found else math.nan


class Label(NamedTuple):
    """A name for a mark; one that is optional stands beside it or not at all."""

    name: str
    size: float  # in points
    place: tuple[float, float]  # of the mark, in the units of the axes
    is_optional: bool = False
    colour: str = INK


_MARK = 4.0  # pixels from the middle of a mark to its edge
_DISTANCES = (6, 12, 18, 26, 34, 44, 56, 70, 86, 104)  # of a name from its mark, in points
# Directions of a name from its mark, right and up, the best first.
_WAYS = ((1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1))
_WAYS += ((1, 0.5), (-1, 0.5), (1, -0.5), (-1, -0.5), (0.5, 1), (-0.5, 1), (0.5, -1), (-0.5, -1))


def write_labels(axes: Axes, labels: Sequence[Label], line: Sequence[tuple[float, float]]) -> None:
    """Writes each name in the first free place, near ones first; far ones get a thin line.

    A place is free if a name there covers no mark, no other name and no line, and if it is nearer
    to its own mark than to any other, or its thin line crosses none. A name without a free place is
    left out.

    Args:
      axes: with their final scales, in a figure whose layout is done.
      labels: the names; earlier ones choose first.
      line: corners of a drawn line, in the units of the axes.
    """
    marks = axes.transData.transform([label.place for label in labels])
    taken = [Bbox.from_bounds(x - _MARK, y - _MARK, 2 * _MARK, 2 * _MARK) for x, y in marks]
    lines = [Line(axes.transData.transform(line))] if line else []
    for i, (name, size, place, is_optional, colour) in enumerate(labels):
        text = axes.annotate(name, place, (0, 0), textcoords="offset points", fontsize=size)
        red, green, blue = to_rgb(colour)
        text.set_color((0.75 * red, 0.75 * green, 0.75 * blue))  # thin strokes look paler
        text.set_in_layout(False)  # else a name at the edge would move what is placed already
        # The thin line may cross marks where nothing else is left.
        covered = (taken[:i] + taken[i + 1 :], taken[len(marks) :])
        distances = _DISTANCES[:1] if is_optional else _DISTANCES
        for others, distance, way in itertools.product(covered, distances, _WAYS):
            box, thin = _moved(text, distance, way, marks[i])
            is_far = distance > _DISTANCES[0]
            if is_far:
                is_clear = not any(thin.intersects_bbox(one, filled=False) for one in others)
            else:
                is_clear = _is_nearest(box, marks[i], marks)
            if is_clear and _is_free(box, axes, taken, lines):
                break
        else:
            text.remove()
            continue
        taken.append(box)
        if is_far:
            look = {"arrowstyle": "-", "color": FAINT, "lw": 0.6, "shrinkA": 1, "shrinkB": 3}
            arrow = axes.annotate(
                "", place, text.xyann, textcoords="offset points", arrowprops=look
            )
            arrow.set_in_layout(False)
            lines.append(thin)


def _moved(text, distance: float, way: tuple[float, float], mark: np.ndarray) -> tuple[Bbox, Line]:
    """Moves a text away from its mark; returns its box and the line to it, in pixels."""
    right, up = way
    text.set(
        position=(right * distance, up * distance),
        horizontalalignment={1: "left", 0: "center", -1: "right"}[np.sign(right)],
        verticalalignment={1: "bottom", 0: "center", -1: "top"}[np.sign(up)],
    )
    pixels = distance * text.get_figure().dpi / 72
    return text.get_window_extent(), Line([mark, mark + np.array(way) * pixels])


def _is_free(box: Bbox, axes: Axes, taken: Sequence[Bbox], lines: Sequence[Line]) -> bool:
    is_inside = axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max)
    crosses = any(line.intersects_bbox(box, filled=False) for line in lines)
    return is_inside and not crosses and not any(map(box.overlaps, taken))


def _is_nearest(box: Bbox, mark: np.ndarray, marks: np.ndarray) -> bool:
    away = lambda point: np.hypot(*np.maximum(0, np.maximum(box.min - point, point - box.max)))  # noqa: E731
    return bool(away(mark) <= min(map(away, marks)))
