"""The page of a diagnosis: warnings first, then the tables and pictures they rest on."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zo_fl.host import style

from ..analysis import drawing, html_parts
from ..analysis.html_parts import element
from ..analysis.text_table import TextTable
from .diagnosis import Diagnosis, OneRound

_CLASS_DROP = 0.10  # of a class's accuracy


def warnings(found: Diagnosis) -> list[str]:
    """Returns a line for each thing that is wrong or would have been better."""
    lines = _round_warnings(found.rounds)
    lost = np.flatnonzero(found.before - found.after > _CLASS_DROP)
    if len(lost):
        noun, each = ("Class", "") if len(lost) == 1 else ("Classes", " each")
        which = ", ".join(map(str, lost))
        lines.append(f"{noun} {which} lost more than {100 * _CLASS_DROP:.0f} points{each}.")
    return lines + _other_warnings(found)


def _round_warnings(rounds: Sequence[OneRound]) -> list[str]:
    lines = []
    noisy = [one for one in rounds if one.noise > one.signal]
    if noisy:
        worst = max(noisy, key=lambda one: one.noise / max(one.signal, 1e-30))
        lines.append(
            f"{_listed(noisy)}: what clients send is more noise than signal "
            f"({worst.noise:.2g} against {worst.signal:.2g}): raise eps, or the precision."
        )
    astray = [one for one in rounds if one.cosine < one.expected / 2]
    for why, is_clear in (("clients disagree about the way", True), ("noise", False)):
        those = [one for one in astray if (one.signal > 10 * one.noise) == is_clear]
        if those:
            lines.append(
                f"{_listed(those)}: the cosine of the step with the descent direction is "
                f"{', '.join(f'{one.cosine:.4f}' for one in those)}; {those[0].directions} "
                f"directions in {those[0].coordinates:,} coordinates give "
                f"{those[0].expected:.4f} where all clients have the same gradient: {why}."
            )
    return lines


def _other_warnings(found: Diagnosis) -> list[str]:
    own, *others = found.bought
    gain, lines = own.accuracy - found.start, []
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
    """Returns two tables: the rounds, and what the passes bought."""
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
    bought = [["the model at its start", f"{100 * found.start:.1f} %", "", "0"]]
    for one in found.bought:
        gain = f"{100 * (one.accuracy - found.start):+.1f}".replace("-", "−")
        bought.append([one.name, f"{100 * one.accuracy:.1f} %", gain, f"{one.passes:,.0f}"])
    return [
        TextTable("Rounds against the exact gradient", headers, rounds),
        TextTable("What passes bought", ["", "Accuracy", "Gain", "Passes"], bought),
    ]


def to_json(found: Diagnosis) -> dict:
    """Returns a diagnosis as JSON."""
    return found._asdict() | {
        "rounds": [one._asdict() for one in found.rounds],
        "before": found.before.tolist(),
        "after": found.after.tolist(),
        "bought": [one._asdict() for one in found.bought],
        "warnings": warnings(found),
    }


@style.own
def page(found: Diagnosis) -> str:
    """Returns the page as HTML; it needs nothing else."""
    lines = warnings(found)
    nothing = element("p", "Nothing stands out.")
    parts = [
        element("h1", escape(f"Diagnosis: {found.title}")),
        html_parts.bullets("What stands out", lines) if lines else nothing,
        *map(html_parts.table, tables(found)),
        html_parts.picture("cosines", _cosines(found)),
        html_parts.picture("classes", _classes(found)),
        html_parts.picture("bought", _bought(found)),
    ]
    return html_parts.document("Diagnosis", "\n".join(parts))


def _cosines(found: Diagnosis) -> Figure:
    values = {
        "measured": [one.cosine for one in found.rounds],
        "as many directions where clients agree": [one.expected for one in found.rounds],
    }
    names = [str(one.round) for one in found.rounds]
    figure, axes = _bars("Steps and the descent direction", names, values)
    axes.set(xlabel="round", ylabel="cosine")
    axes.axhline(0, color=style.INK, linewidth=0.8)
    return figure


def _classes(found: Diagnosis) -> Figure:
    order = np.argsort(-found.before, kind="stable")
    values = {"at its end": 100 * found.after[order], "at its start": 100 * found.before[order]}
    names = [str(one) for one in order] if len(order) <= 20 else []
    figure, axes = _bars("Accuracy by class", names, values)
    axes.set(xlabel="class", ylabel="test accuracy, %")
    return figure


def _bars(title: str, names: Sequence[str], values: dict[str, Any]):
    """Returns a figure of two bars a place, the first in colour, and its axes."""
    figure = drawing.new_figure(title, 2.6)
    axes = figure.subplots()
    for shift, colour, (label, heights) in zip(
        (-0.2, 0.2), (style.COLOURS[0], style.GREY), values.items(), strict=True
    ):
        axes.bar(np.arange(len(heights)) + shift, heights, 0.36, label=label, color=colour)
    axes.set_xticks(range(len(names)), names)
    style.decorate(axes)
    drawing.add_legend(figure, axes)
    return figure, axes


def _bought(found: Diagnosis) -> Figure:
    figure = drawing.new_figure("What passes bought", 0.9 + 0.45 * len(found.bought))
    axes: Axes = figure.subplots()
    colours = [style.COLOURS[0], *[style.GREY] * (len(found.bought) - 1)]
    accuracies = [100 * one.accuracy for one in found.bought]
    bars = axes.barh([one.name for one in found.bought], accuracies, 0.6, color=colours)
    passes = [f"{one.passes:,.0f} passes" for one in found.bought]
    axes.bar_label(bars, passes, padding=3, fontsize=8, color=style.INK)
    axes.invert_yaxis()
    axes.axvline(100 * found.start, color=style.INK, linewidth=1, linestyle=":", zorder=0.5)
    axes.set_xlabel("test accuracy, %; dotted: the phase's first model")
    axes.margins(x=0.3)
    style.decorate(axes)
    return figure
