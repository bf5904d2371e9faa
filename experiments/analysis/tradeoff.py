"""The prices that a low-resource client pays for everyone's accuracy: points, table, picture.

Three prices, each of one low-resource client over the whole run: uplink in bytes, peak memory of
its largest step as compiled, and passes over single examples (a backward one counts as two).
A point is on the front of a price if nothing cheaper is as accurate.
"""

import collections
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zo_fl.host import style, units
from zo_fl.host.style import FAINT, INK, decorate, plain

from . import comparison, drawing, runs, tables
from .drawing import Label
from .runs import SweepRuns
from .text_table import TextTable

PRICES = {
    "uplink": "sent by a low-resource client",
    "memory": "its peak memory",
    "passes": "its passes, a backward one as two",
}
_FORMATS = {"uplink": units.num_bytes, "memory": units.num_bytes, "passes": units.integer}
_LEAST = {"uplink": 100, "memory": 1_000_000, "passes": 100}  # where an axis becomes logarithmic


class TradeOff(NamedTuple):
    """One point of a sweep and its prices for a low-resource client; None is not known."""

    name: str
    accuracies: list[float]  # in percent, one for each seed
    uplink: float | None  # bytes over the run, mean over seeds
    memory: float | None  # bytes
    passes: float | None  # over single examples in the run, mean over seeds

    def accuracy(self) -> float:
        """Returns the mean accuracy over seeds."""
        return sum(self.accuracies) / len(self.accuracies)

    def price(self, name: str) -> Any:
        """Returns one of the ``PRICES``."""
        return self._asdict()[name]


# As printed, CIFAR-10 at 10/90; a low-resource client of ZOWarmUp sends 3 floats in 300 rounds, one
# of HeteroFL half-width deltas (2.8 M floats) in 500. ZOWarmUp's memory is Table 1's.
PAPER = (
    TradeOff("ZOWarmUp (paper)", [54.3], 3_600, 89.4e6, None),
    TradeOff("HeteroFL (paper)", [51.1], 500 * 4 * 2_798_000, None, None),
    TradeOff("High Res Only (paper)", [44.3], 0, None, 0),
)


def points(
    sweep: SweepRuns, memory_of: Callable[[Mapping[str, Any]], int] | None
) -> list[TradeOff]:
    """Returns the points of a sweep that have a finished run.

    ``memory_of`` returns a low-resource client's bytes for a run's config; None: not known.
    """
    found = []
    for row, column in sweep.points():
        finished = runs.finished(sweep.of(row, column))
        good = [run for run in finished if comparison.converged(run)]
        accuracies = [100 * value for value in runs.numbers(good, "final_accuracy")]
        if accuracies:
            name = row if len(sweep.columns) == 1 else f"{row}, {column}"
            uplink = comparison.mean(runs.numbers(good, "low_uplink_bytes"))
            passes = comparison.mean(runs.numbers(good, "low_passes"))
            memory = memory_of(finished[0].config) if memory_of else None
            found.append(TradeOff(name, accuracies, uplink, memory, passes))
    return found


@style.own
def write(found: Sequence[TradeOff], out: Path, with_paper: bool) -> None:
    """Writes the picture, its first panel alone, the table and the points.

    Raises:
      ConfigError: they cannot be written.
    """
    content = {"points": [point._asdict() for point in found], "with_paper": with_paper}
    headers = ["name", "accuracy", "n", *PRICES]
    rows = [[p.name, p.accuracy(), len(p.accuracies), *map(p.price, PRICES)] for p in found]
    with runs.writing(out):
        drawing.save(draw(found, with_paper), out / "pareto.png")
        drawing.save(draw(found, with_paper, 1), out / "pareto_first.png")
        (out / "pareto.md").write_text(table(found).markdown(), encoding="utf-8")
        tables.write_csv(out / "pareto.csv", headers, rows)
        (out / "pareto.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def from_json(content: Any) -> tuple[list[TradeOff], bool] | None:
    """Returns points and whether the paper's belong beside them; None of something else."""
    try:
        return [TradeOff(**point) for point in content["points"]], bool(content["with_paper"])
    except (KeyError, TypeError):
        return None


def front(found: Sequence[TradeOff], price: str) -> list[TradeOff]:
    """Returns the points such that none is cheaper and as accurate, the cheapest first."""
    known = [point for point in found if point.price(price) is not None]
    best, kept = float("-inf"), []
    for point in sorted(known, key=lambda p: (p.price(price), -p.accuracy())):
        if point.accuracy() > best:
            best = point.accuracy()
            kept.append(point)
    return kept


def table(found: Sequence[TradeOff]) -> TextTable:
    """Returns a line for each point, the cheapest uplink first, with marks for fronts."""
    prices = _known(found)
    on_front = {price: front(found, price) for price in prices}
    rows = []
    for point in sorted(found, key=lambda p: (p.uplink or 0, p.accuracy())):
        cells = [
            _FORMATS[price](point.price(price)) + ("*" if point in on_front[price] else "")
            for price in prices
        ]
        accuracy = comparison.mean_std(point.accuracies)
        rows.append([point.name, accuracy, *cells, str(len(point.accuracies))])
    title = "Of one low-resource client, over the run; * = on the front"
    return TextTable(title, ["", "accuracy, %", *prices, "n"], rows)


def draw(found: Sequence[TradeOff], with_paper: bool, panels: int | None = None) -> Figure:
    """Returns accuracy against each known price, fronts as lines, the paper's figures hollow.

    ``panels`` is how many of the prices; None means all.

    Points of a family have its colour, and beside them the rest of their names. The first panel
    names all; the others name their fronts, and what finds a place beside its mark.
    """
    prices, families = _known(found)[:panels], [family for _, family in _names(found)]
    heights = [0.11 * len(found) + 2.6, *[3.2] * (len(prices) - 1)]
    figure = drawing.new_figure("", sum(heights))
    ratios = {"height_ratios": heights}
    drawn = figure.subplots(len(prices), 1, squeeze=False, gridspec_kw=ratios)[:, 0]
    colours = drawing.colours([family for family in families if family]) | {"": INK}
    of_point = [colours[family] for family in families]
    told = PAPER if with_paper else ()
    for axes, price in zip(drawn, prices, strict=True):
        _draw_panel(axes, found, told, price, of_point)
    for family in filter(None, dict.fromkeys(families)):
        drawn[0].plot([], [], "o", color=colours[family], label=plain(family))
    if with_paper:
        look = drawing.PAPER | {"color": INK, "linestyle": "none"}
        drawn[0].plot([], [], label="the paper, as printed", **look)
    drawing.add_legend(figure, drawn[0], "mean and standard deviation over seeds")
    figure.draw_without_rendering()  # the room for labels depends on the layout
    for axes, price in zip(drawn, prices, strict=True):
        _label(axes, price, found, told, of_point, has_all=price == prices[0])
    return figure


def _draw_panel(
    axes: Axes,
    found: Sequence[TradeOff],
    told: Sequence[TradeOff],
    price: str,
    colours: Sequence[str],
) -> None:
    decorate(axes)
    axes.margins(y=0.12)
    for point, colour in zip(found, colours, strict=True):
        if (x := point.price(price)) is not None:
            look: dict[str, Any] = {"fmt": "o", "ms": 4.5, "lw": 1, "clip_on": False}
            look["color"] = colour
            axes.errorbar(x, point.accuracy(), yerr=comparison.std(point.accuracies), **look)
    kept = front(found, price)
    xs, ys = [point.price(price) for point in kept], [point.accuracy() for point in kept]
    axes.plot(xs, ys, color=FAINT, lw=0.9, zorder=1, drawstyle="steps-post")
    for point in told:
        if (x := point.price(price)) is not None:
            look = drawing.PAPER | {"color": INK, "linestyle": "none", "clip_on": False}
            axes.plot(x, point.accuracy(), **look)
    _scale(axes, price)
    axes.set(xlabel=PRICES[price], ylabel="test accuracy, %")


def _label(
    axes: Axes,
    price: str,
    found: Sequence[TradeOff],
    told: Sequence[TradeOff],
    colours: Sequence[str],
    has_all: bool,
) -> None:
    """Writes the names of points beside their marks; a family's name is in the legend."""

    def place(point: TradeOff) -> tuple[Any, float]:
        return point.price(price), point.accuracy()

    on_front, labels = front(found, price), []
    for point, (name, _), colour in zip(found, _names(found), colours, strict=True):
        is_optional = not has_all and point not in on_front
        labels.append(Label(plain(name), 7.5, place(point), is_optional, colour))
    labels += [Label(point.name.removesuffix(" (paper)"), 8, place(point)) for point in told]
    labels = [label for label in labels if label.place[0] is not None]
    kept = [place(point) for point in on_front]
    corners = [(x, y) for (_, y), (x, _) in itertools.pairwise(kept)]
    steps = [one for pair in itertools.zip_longest(kept, corners) for one in pair if one]
    # From the top: the best ones choose their place first.
    labels.sort(key=lambda label: (label.is_optional, -label.place[1]))
    drawing.write_labels(axes, labels, steps)


def _scale(axes: Axes, price: str) -> None:
    """Makes the horizontal axis logarithmic, with a place for 0."""
    smallest = _LEAST[price]
    axes.set_xscale("symlog", linthresh=smallest, linscale=0.9)
    largest = 2 * axes.get_xlim()[1]  # room for the label of the last
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


def _known(found: Sequence[TradeOff]) -> list[str]:
    return [price for price in PRICES if any(point.price(price) is not None for point in found)]


def _names(found: Sequence[TradeOff]) -> list[tuple[str, str]]:
    """Returns for each point its short name and its family, "" of those that are alone.

    A family is of points whose names begin alike, up to a comma; what all of them share is in its
    name, the rest in the short names. There are as many families as colours, the largest ones.
    """
    parts = [point.name.split(", ") for point in found]
    sizes = collections.Counter(first for first, *_ in parts)
    large = [first for first, size in sizes.most_common(len(style.COLOURS) - 1) if size > 1]
    names = []
    for own in parts:
        alike = [other for other in parts if other[0] == own[0] in large]
        shared = [part for part in own if alike and all(part in other for other in alike)]
        rest = [part for part in own if part not in shared] or own
        names.append((", ".join(rest), ", ".join(shared)))
    return names
