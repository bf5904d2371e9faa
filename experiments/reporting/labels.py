"""Names beside marks, where they cover no mark, no other name and not a line."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.path import Path
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from zo_fl.host.style import FAINT, INK

_MARK = 4.0  # pixels from the middle of a mark to its edge
_DISTANCES = (6, 14, 24, 34)  # of a name from its mark, in points
# Where a name may be, right and up of its mark, the best first.
_WAYS = ((1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1))

Place = tuple[float, float]


class Label(NamedTuple):
    """A name of a mark.

    Attributes:
      name: the text.
      size: of the text, in points.
      place: of the mark, in the units of the axes.
      is_optional: left out where there is no room right beside the mark.
    """

    name: str
    size: float
    place: Place
    is_optional: bool = False


def write(axes: Axes, labels: Sequence[Label], line: Sequence[Place]) -> None:
    """Writes each name in the first place that is free, near ones first.

    Without a line that leads to it, a name is nearer to its own mark than to any other.

    Args:
      axes: with their final scales, in a figure whose layout is done.
      labels: what to write; the earlier ones choose first.
      line: corners of what no name should cross, in the units of the axes.
    """
    marks = axes.transData.transform([label.place for label in labels])
    taken = [Bbox.from_bounds(x - _MARK, y - _MARK, 2 * _MARK, 2 * _MARK) for x, y in marks]
    drawn = Path(axes.transData.transform(line)) if line else None
    for label, mark in zip(labels, marks, strict=True):
        name, size, place, is_optional = label
        text = axes.annotate(
            name, place, (0, 0), textcoords="offset points", fontsize=size, color=INK
        )

        def is_free(distance: float, right: int, up: int) -> bool:
            box = _moved(text, distance, right, up)  # noqa: B023
            middle = np.array([box.x0 + box.x1, box.y0 + box.y1]) / 2
            away = np.hypot(*(marks - middle).T).min()
            is_near = np.hypot(*(mark - middle)) <= away or distance > _DISTANCES[0]  # noqa: B023
            return bool(is_near) and _is_free(box, axes, taken, drawn)

        distances = _DISTANCES[:1] if is_optional else _DISTANCES
        tried = [(distance, *way) for distance in distances for way in _WAYS]
        free = next((one for one in tried if is_free(*one)), None)
        if free is None and is_optional:
            text.remove()
            continue
        distance, right, up = free or tried[0]
        taken.append(_moved(text, distance, right, up))
        if distance > _DISTANCES[0]:
            style = {"arrowstyle": "-", "color": FAINT, "lw": 0.6, "shrinkA": 1, "shrinkB": 3}
            axes.annotate("", place, text.xyann, textcoords="offset points", arrowprops=style)


def _moved(text: Annotation, distance: float, right: int, up: int) -> Bbox:
    """Moves a text away from its mark and returns where it is then, in pixels."""
    text.set(
        position=(right * distance, up * distance),
        horizontalalignment={1: "left", 0: "center", -1: "right"}[right],
        verticalalignment={1: "bottom", 0: "center", -1: "top"}[up],
    )
    return text.get_window_extent()


def _is_free(box: Bbox, axes: Axes, taken: Sequence[Bbox], line: Path | None) -> bool:
    is_inside = axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max)
    crosses = line is not None and line.intersects_bbox(box, filled=False)
    return is_inside and not crosses and not any(map(box.overlaps, taken))
