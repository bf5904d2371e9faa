"""Measures how time and memory of a round grow, and draws them on logarithmic axes.

    python -m benchmarks.growth [--most=10000] [--rounds=3] [--png=growth.png]

Four quantities grow one at a time: clients, images of each, directions S and parameters d (widths
of ResNet18). Time is the median of the timed rounds; memory is what the compiled round reserves
beyond its arguments, and the arguments themselves: the data and the state. "Streamed" is a cohort
of ten out of all clients, their images kept on the host. Exponents are fitted to the upper half of
each line: 1 is linear, 0 is flat. Synthetic pixels, a small MLP except for d.
"""

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from experiments import cli
from experiments.analysis import drawing
from zo_fl.host import style

from . import measure
from .workloads import Workload

_MLP = {"name": "mlp", "norm": "none"}
_RESNET = {"name": "resnet18", "norm": "group"}
_TRAINING = {"tiers": "all", "augment": False, "local_epochs": 1, "batch_size": 8}
_METHODS = {"FedAvg": ("fedavg", _TRAINING), "Zeroth order": ("zo", {})}


AXES = {"clients": "clients", "images": "images of each", "S": "directions", "d": "parameters"}
FIELDS = {
    "seconds": "seconds a round",
    "reserved": "bytes reserved",
    "arguments": "bytes of data and state",
}


class Point(NamedTuple):
    """One measurement.

    Attributes:
      axis: what grows: ``clients``, ``images``, ``S`` or ``d``.
      line: ``FedAvg``, ``Zeroth order`` or ``streamed``.
      size: on the axis.
      seconds: a round.
      reserved: bytes of temporaries of the compiled round.
      arguments: bytes of its arguments on the device.
    """

    axis: str
    line: str
    size: int
    seconds: float
    reserved: int
    arguments: int


def cases(most: int) -> Iterator[tuple[str, str, int | None, Workload, dict[str, Any]]]:
    """Yields ``(axis, line, size, workload, config changes)``; size None = the parameters."""
    for line, (algorithm, block) in _METHODS.items():
        for clients in _decades(10, most):
            yield "clients", line, clients, Workload("", "", algorithm, _MLP, clients, 8, block), {}
        for images in (8, 32, 128, 512):
            work = Workload("", "", algorithm, _MLP, 10, images, block)
            yield "images", line, images, work, {}
        for width in (0.125, 0.25, 0.5, 1.0, 3.0):
            work = Workload("", "", algorithm, _RESNET, 1, 8, block, width=width)
            yield "d", line, None, work, {}
    for directions in (1, 4, 16, 64):
        work = Workload("", "", "zo", _MLP, 10, 32, {"num_directions": directions})
        yield "S", "Zeroth order", directions, work, {}
    for clients in _decades(10, most):
        work = Workload("", "", "zo", _MLP, clients, 8, {"cohort_size": 10})
        yield "clients", "Ten of all, streamed", clients, work, {"run.data": "stream"}


def exponent(points: Sequence[Point], field: str) -> float:
    """Returns the slope of the upper half of a line on logarithmic axes."""
    upper = sorted(points, key=lambda point: point.size)[-max(2, (len(points) + 1) // 2) :]
    sizes = np.log([point.size for point in upper])
    slope = np.polyfit(sizes, np.log([getattr(p, field) for p in upper]), 1)[0]
    return round(float(slope), 3) + 0.0  # not -0


def draw(points: Sequence[Point]) -> Figure:
    """Returns a row an axis: time, memory reserved, memory of data and state."""
    lines = list(dict.fromkeys(point.line for point in points))
    colours = drawing.colours(lines)
    names = list(dict.fromkeys(point.axis for point in points))
    figure = drawing.new_figure("Growth of a round; numbers are exponents", 2.2 * len(names), 7.2)
    grid = figure.subplots(len(names), len(FIELDS), squeeze=False)
    for panels, axis in zip(grid, names, strict=True):
        for panel, (field, label) in zip(panels, FIELDS.items(), strict=True):
            style.decorate(panel)
            slopes = []
            for line in lines:
                of_line = [p for p in points if (p.axis, p.line) == (axis, line)]
                if of_line:
                    xs, ys = zip(*[(p.size, getattr(p, field)) for p in of_line], strict=True)
                    panel.loglog(xs, ys, marker="o", ms=3, color=colours[line], label=line)
                    slopes.append((f"{exponent(of_line, field):.2f}", colours[line]))
            for i, (slope, colour) in enumerate(slopes):
                where = {"transform": panel.transAxes, "va": "top", "fontsize": 8}
                panel.text(0.04, 0.97 - 0.13 * i, slope, color=colour, **where)
            low, high = panel.get_ylim()
            if high < 1000 * low:  # a flat line should look flat
                middle = (low * high) ** 0.5
                panel.set_ylim(middle / 1000**0.5, middle * 1000**0.5)
            panel.yaxis.set_minor_formatter(NullFormatter())
            panel.set_xlabel(AXES[axis])
            panel.set_title(label, fontsize=9, color=style.INK)
    drawing.add_legend(figure, grid[0, 0])
    return figure


def _decades(first: int, last: int) -> list[int]:
    return [n for n in (first * 10**i for i in range(9)) if n <= last]


def _measured(axis: str, line: str, given: int | None, work: Workload, changes) -> Point:
    figures = measure.measure(work, flags.FLAGS.rounds, changes)
    size = figures["parameters"] if given is None else given
    return Point(
        axis,
        line,
        size,
        statistics.median(figures["seconds"]),
        figures["temporary_bytes"],
        figures["argument_bytes"],
    )


def main(argv: list[str]) -> int:
    """Measures, prints a line a point, draws; returns the exit status."""
    del argv
    points = []
    for case in cases(flags.FLAGS.most):
        points.append(_measured(*case))
        print(points[-1], flush=True)
    draw(points).savefig(flags.FLAGS.png)
    if flags.FLAGS.json:
        content = [point._asdict() for point in points]
        Path(flags.FLAGS.json).write_text(json.dumps(content, indent=1) + "\n")
    return 0


def define_flags() -> None:
    """Defines the command's flags."""
    flags.DEFINE_integer("most", 10_000, "Most clients.", lower_bound=10)
    flags.DEFINE_integer("rounds", 3, "Timed rounds a point.", lower_bound=1)
    flags.DEFINE_string("png", "growth.png", "The picture.")
    flags.DEFINE_string("json", None, "Also write all figures to this file.")


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)
