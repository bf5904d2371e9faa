"""The page of a diagnosis: warnings first, then what they rest on."""

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from zo_fl.host import style

from ..reporting import html_page
from ..reporting.figure_style import decorate, new_figure
from ..reporting.html_page import element
from ..reporting.text_tables import TextTable
from .measures import Bought, OneRound

_CLASS_DROP = 0.10  # of a class's accuracy


class Diagnosis(NamedTuple):
    """All that was measured.

    Attributes:
      title: which run.
      phase: name.
      rounds: some of the phase's.
      start: accuracy at its start.
      before: ``f64[classes]`` accuracies there.
      after: at its end.
      bought: what the phase itself bought, then what others would have.
    """

    title: str
    phase: str
    rounds: list[OneRound]
    start: float
    before: np.ndarray
    after: np.ndarray
    bought: list[Bought]


def warnings(found: Diagnosis) -> list[str]:
    """Returns what is wrong, or would have been better, a line each."""
    lines = []
    noisy = [one for one in found.rounds if one.noise > one.signal]
    if noisy:
        worst = max(noisy, key=lambda one: one.noise / max(one.signal, 1e-30))
        lines.append(
            f"{_listed(noisy)}: what clients send is more noise than signal "
            f"({worst.noise:.2g} against {worst.signal:.2g}): raise eps, or the precision."
        )
    astray = [one for one in found.rounds if one.cosine < one.expected / 2]
    for why, is_clear in (("clients disagree about the way", True), ("noise", False)):
        those = [one for one in astray if (one.signal > 10 * one.noise) == is_clear]
        if those:
            lines.append(
                f"{_listed(those)}: the cosine of the step with the descent direction is "
                f"{', '.join(f'{one.cosine:.4f}' for one in those)}; {those[0].directions} "
                f"directions in {those[0].coordinates:,} coordinates give "
                f"{those[0].expected:.4f} where all clients have the same gradient: {why}."
            )
    own, *others = found.bought
    gain = own.accuracy - found.start
    lost = np.flatnonzero(found.before - found.after > _CLASS_DROP)
    if len(lost):
        which = ", ".join(map(str, lost))
        noun, each = ("Class", "") if len(lost) == 1 else ("Classes", " each")
        lines.append(f"{noun} {which} lost more than {100 * _CLASS_DROP:.0f} points{each}.")
    for other in others:
        its = other.accuracy - found.start
        if other.name.startswith("zero rate"):
            if gain > 0 and its > gain / 2:
                lines.append(
                    f"Statistics alone explain {100 * its / gain:.0f} % of what the phase gained."
                )
        elif other.accuracy > own.accuracy:
            lines.append(
                f"{other.name[0].upper()}{other.name[1:]} would have given "
                f"{100 * other.accuracy:.1f} % for {other.passes / own.passes:.2g} times the "
                f"passes of this phase, which gave {100 * own.accuracy:.1f} %."
            )
    return lines


def _listed(rounds: Sequence[OneRound]) -> str:
    """Returns ``Round 5``, or ``Rounds 5, 9``."""
    noun = "Round" if len(rounds) == 1 else "Rounds"
    return f"{noun} {', '.join(str(one.round) for one in rounds)}"


def tables(found: Diagnosis) -> list[TextTable]:
    """Returns the tables: rounds, and what the passes bought."""
    rounds = [
        [
            str(one.round),
            f"{one.cosine:.4f}",
            f"{one.expected:.4f}",
            f"{one.directions:,}",
            f"{one.coordinates:,}",
            f"{one.update_norm:.2g}",
            "–" if math.isnan(one.signal) else f"{one.signal / max(one.noise, 1e-30):.3g}",
        ]
        for one in found.rounds
    ]
    headers = ["Round", "Cosine", "Expected", "Directions", "Coordinates", "Step", "Signal / noise"]
    start = found.start
    bought = [["the model at its start", f"{100 * start:.1f} %", "", "0"]] + [
        [
            one.name,
            f"{100 * one.accuracy:.1f} %",
            f"{100 * (one.accuracy - start):+.1f}".replace("-", "−"),
            f"{one.passes:,.0f}",
        ]
        for one in found.bought
    ]
    return [
        TextTable("Rounds against the exact gradient", headers, rounds, num_names=1),
        TextTable("What passes bought", ["", "Accuracy", "Gain", "Passes"], bought, num_names=1),
    ]


def figures(found: Diagnosis) -> dict[str, Figure]:
    """Returns the pictures by their names."""
    return {
        "cosines": _cosines(found.rounds),
        "classes": _classes(found.before, found.after),
        "bought": _bought(found.bought, found.start),
    }


def page(found: Diagnosis) -> str:
    """Returns the page as HTML; it needs nothing else."""
    parts = [element("h1", escape(f"Diagnosis: {found.title}"))]
    lines = warnings(found)
    if lines:
        parts.append(html_page.bullets("What stands out", lines))
    else:
        parts.append(element("p", "Nothing stands out."))
    parts += [html_page.table(made) for made in tables(found)]
    for name, figure in figures(found).items():
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
        data = base64.b64encode(file.getvalue()).decode()
        source = f"data:image/svg+xml;base64,{data}"
        parts.append(f'<figure><img alt="picture {name}" src="{source}"></figure>')
    return html_page.document("Diagnosis", "\n".join(parts))


def _cosines(rounds: Sequence[OneRound]) -> Figure:
    figure = new_figure("Steps and the descent direction", 2.6, 5.4)
    axes = figure.subplots()
    places = np.arange(len(rounds))
    for shift, label, colour, values in (
        (-0.2, "measured", style.COLOURS[0], [one.cosine for one in rounds]),
        (
            0.2,
            "as many directions where clients agree",
            style.GREY,
            [one.expected for one in rounds],
        ),
    ):
        axes.bar(places + shift, values, 0.36, label=label, color=colour)
    axes.set_xticks(places, [str(one.round) for one in rounds])
    axes.set_xlabel("round")
    axes.set_ylabel("cosine")
    axes.axhline(0, color=style.INK, linewidth=0.8)
    decorate(axes)
    _legend_below(figure, axes)
    return figure


def _classes(before: np.ndarray, after: np.ndarray) -> Figure:
    figure = new_figure("Accuracy by class", 2.6, 5.4)
    axes = figure.subplots()
    order = np.argsort(-before, kind="stable")
    places = np.arange(len(order))
    axes.bar(places - 0.2, 100 * before[order], 0.36, label="at its start", color=style.GREY)
    axes.bar(places + 0.2, 100 * after[order], 0.36, label="at its end", color=style.COLOURS[0])
    if len(order) <= 20:
        axes.set_xticks(places, list(map(str, order)))
    axes.set_xlabel("class")
    axes.set_ylabel("test accuracy, %")
    decorate(axes)
    _legend_below(figure, axes)
    return figure


def _bought(bought: Sequence[Bought], start: float) -> Figure:
    figure = new_figure("What passes bought", 0.9 + 0.45 * len(bought), 5.4)
    axes = figure.subplots()
    colours = [style.COLOURS[0], *[style.GREY] * (len(bought) - 1)]
    places = np.arange(len(bought))[::-1]
    axes.barh(places, [100 * one.accuracy for one in bought], 0.6, color=colours)
    for place, one in zip(places, bought, strict=True):
        axes.annotate(
            f"{one.passes:,.0f} passes",
            (100 * one.accuracy, place),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=style.INK,
        )
    axes.set_yticks(places, [one.name for one in bought])
    axes.axvline(100 * start, color=style.INK, linewidth=1, linestyle=":", zorder=0.5)
    axes.set_xlabel("test accuracy, %; dotted: the phase's first model")
    axes.margins(x=0.3)
    decorate(axes)
    return figure


def _legend_below(figure: Figure, axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
