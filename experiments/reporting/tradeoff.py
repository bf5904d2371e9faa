"""What a low-resource client spends for the accuracy that everyone gets: points, picture, table.

Three prices, each of one low-resource client over the whole run: uplink in bytes, peak memory of
its largest step as compiled, and passes over single examples (a backward one counts as two).
A point is on the front of a price if nothing cheaper is as accurate.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zo_fl.host import units
from zo_fl.host.style import FAINT, INK, decorate, plain

from . import comparison, figure_style, labels, runs
from .labels import Label
from .runs import SweepRuns
from .text_tables import TextTable

PRICES = {
    "uplink": "sent by a low-resource client",
    "memory": "its peak memory",
    "passes": "its passes, a backward one as two",
}
_FORMATS = {"uplink": units.num_bytes, "memory": units.num_bytes, "passes": units.integer}
_FIELDS = {"uplink": "low_uplink_bytes", "passes": "low_passes"}
_MEGA = 1_000_000


class TradeOff(NamedTuple):
    """One point of a sweep and what it costs a low-resource client; None is not known.

    Attributes:
      name: of the point.
      accuracies: in percent, of each seed.
      uplink: bytes over the run, mean over seeds.
      memory: bytes.
      passes: single-example passes over the run, mean over seeds.
    """

    name: str
    accuracies: list[float]
    uplink: float | None
    memory: float | None
    passes: float | None


# As printed, CIFAR-10 at 10/90; a low-resource client of ZOWarmUp sends 3 floats in 300 rounds, one
# of HeteroFL half-width deltas (2.8 M floats) in 500. Its memory is Table 1's.
PAPER = (
    TradeOff("ZOWarmUp (paper)", [54.3], 3_600, 89.4 * _MEGA, None),
    TradeOff("HeteroFL (paper)", [51.1], 500 * 4 * 2_798_000, None, None),
    TradeOff("High Res Only (paper)", [44.3], 0, None, 0),
)


def points(sweep: SweepRuns, memory: dict[str, int]) -> list[TradeOff]:
    """Returns the points of a sweep that have a finished run.

    Args:
      sweep: its runs.
      memory: bytes, by the name of the point; see ``name_of``.
    """
    found = []
    for row, column in sweep.points():
        done = [r for r in runs.finished(sweep.of(row, column)) if comparison.converged(r)]
        accuracies = [100 * value for value in runs.numbers(done, "final_accuracy")]
        if accuracies:
            name = name_of(sweep, row, column)
            uplink, passes = (
                comparison.mean(runs.numbers(done, _FIELDS[price]))
                for price in ("uplink", "passes")
            )
            found.append(TradeOff(name, accuracies, uplink, memory.get(name), passes))
    return found


def to_json(found: Sequence[TradeOff], with_paper: bool) -> dict[str, Any]:
    """Returns what ``from_json`` reads."""
    return {"points": [point._asdict() for point in found], "with_paper": with_paper}


def from_json(content: Any) -> tuple[list[TradeOff], bool] | None:
    """Returns points and whether the paper's belong beside them; None of something else."""
    try:
        return [TradeOff(**point) for point in content["points"]], bool(content["with_paper"])
    except (KeyError, TypeError):
        return None


def name_of(sweep: SweepRuns, row: str, column: str) -> str:
    """Returns what a point is called where several sweeps meet."""
    return row if len(sweep.columns) == 1 else f"{row}, {column}"


def front(found: Sequence[TradeOff], price: str) -> list[TradeOff]:
    """Returns the points of which none is cheaper and as accurate, the cheapest first."""
    known = [point for point in found if getattr(point, price) is not None]
    best, kept = float("-inf"), []
    for point in sorted(known, key=lambda p: (getattr(p, price), -_mean(p))):
        if _mean(point) > best:
            best = _mean(point)
            kept.append(point)
    return kept


def numbered(found: Sequence[TradeOff]) -> list[tuple[int, TradeOff]]:
    """Returns the points with their numbers in table and picture, the cheapest uplink first."""
    return list(enumerate(sorted(found, key=lambda p: (p.uplink or 0, _mean(p))), start=1))


def known(found: Sequence[TradeOff]) -> list[str]:
    """Returns the keys of ``PRICES`` that some point has."""
    return [price for price in PRICES if any(getattr(p, price) is not None for p in found)]


def table(found: Sequence[TradeOff]) -> TextTable:
    """Returns a line a point, the cheapest uplink first; a mark where a point is on a front."""
    prices = known(found)
    on_front = {price: front(found, price) for price in prices}
    rows = []
    for number, point in numbered(found):
        cells = [
            _FORMATS[price](getattr(point, price)) + ("*" if point in on_front[price] else "")
            for price in prices
        ]
        accuracy = comparison.mean_std(point.accuracies)
        rows.append([str(number), point.name, accuracy, str(len(point.accuracies)), *cells])
    headers = ["#", "", "test accuracy, %", "n", *prices]
    return TextTable("Of one low-resource client, over the run; * = on the front", headers, rows)


def draw(found: Sequence[TradeOff], title: str, with_paper: bool) -> Figure:
    """Returns accuracy against each known price, fronts as lines, the paper's figures hollow.

    Numbers are the table's. The first panel has all of them, the others those on their fronts and
    what else finds a place beside its mark.
    """
    prices = known(found)
    figure = figure_style.new_figure(title, 3.2 * len(prices), figure_style.WIDTH)
    panels = figure.subplots(len(prices), 1, squeeze=False)[:, 0]
    colours = figure_style.colours([_family(point) for point in found])
    for axes, price in zip(panels, prices, strict=True):
        decorate(axes)
        axes.margins(y=0.12)
        _draw_points(axes, found, price, colours)
        kept = front(found, price)
        xs, ys = [getattr(p, price) for p in kept], [_mean(p) for p in kept]
        axes.plot(xs, ys, color=FAINT, lw=0.9, zorder=1, drawstyle="steps-post")
        if with_paper:
            _draw_paper(axes, price)
        _scale(axes, price)
        axes.set_xlabel(PRICES[price])
        axes.set_ylabel("test accuracy, %")
    for family in dict.fromkeys(_family(point) for point in found):
        panels[0].plot([], [], "o", color=colours[family], label=plain(family))
    if with_paper:
        panels[0].plot(
            [], [], color=INK, linestyle="none", label="the paper, as printed", **figure_style.PAPER
        )
    figure_style.add_legend(figure, panels[0], "mean and standard deviation over seeds")
    figure.draw_without_rendering()  # where there is room depends on the layout
    for axes, price in zip(panels, prices, strict=True):
        _label(axes, price, found, with_paper, has_all=price == prices[0])
    return figure


def _draw_points(axes: Axes, found: Sequence[TradeOff], price: str, colours) -> None:
    for point in found:
        x = getattr(point, price)
        if x is not None:
            axes.errorbar(
                x,
                _mean(point),
                yerr=comparison.std(point.accuracies),
                fmt="o",
                ms=4.5,
                lw=1,
                color=colours[_family(point)],
                clip_on=False,
            )


def _label(
    axes: Axes, price: str, found: Sequence[TradeOff], with_paper: bool, has_all: bool
) -> None:
    """Writes the numbers of points, and the paper's names, beside their marks."""
    on_front = front(found, price)
    named = [
        (str(number), 7.5, point, not has_all and point not in on_front)
        for number, point in numbered(found)
    ]
    named += [(p.name.removesuffix(" (paper)"), 8, p, False) for p in PAPER if with_paper]
    at = [
        Label(name, size, (getattr(p, price), _mean(p)), is_optional)
        for name, size, p, is_optional in named
        if getattr(p, price) is not None
    ]
    kept = [(getattr(p, price), _mean(p)) for p in on_front]
    corners = [(x, y) for (_, y), (x, _) in itertools.pairwise(kept)]
    steps = [place for pair in itertools.zip_longest(kept, corners) for place in pair if place]
    # From the top: what is best is named where it is looked for.
    at.sort(key=lambda label: (label.is_optional, -label.place[1]))
    labels.write(axes, at, steps)


def _draw_paper(axes: Axes, price: str) -> None:
    for point in PAPER:
        if getattr(point, price) is None:
            continue
        x = getattr(point, price)
        axes.plot(x, _mean(point), color=INK, linestyle="none", clip_on=False, **figure_style.PAPER)


def _scale(axes: Axes, price: str) -> None:
    """Makes the horizontal axis logarithmic, with a place for nothing at all."""
    smallest = {"uplink": 100, "memory": 1_000_000, "passes": 100}[price]
    axes.set_xscale("symlog", linthresh=smallest, linscale=0.9)
    largest = 2 * axes.get_xlim()[1]  # room for what is written beside the last
    axes.set_xlim(0, largest)
    step = 100 if largest / smallest > 1e4 else 10
    ticks = [0.0]
    while (tick := smallest * step ** (len(ticks) - 1)) <= largest:
        ticks.append(tick)
    axes.set_xticks(ticks, [_tick(price, tick) for tick in ticks])
    axes.set_xticks([], minor=True)


def _tick(price: str, value: float) -> str:
    if price == "passes":
        return units.integer(value)
    for unit, size in {"GB": 1e9, "MB": 1e6, "kB": 1e3}.items():
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g} B" if value else "0"


def _family(point: TradeOff) -> str:
    return point.name.split(",")[0]


def _mean(point: Any) -> float:
    return sum(point.accuracies) / len(point.accuracies)
