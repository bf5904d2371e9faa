"""The page of the report: all sweeps and runs of a folder, and nothing from outside."""

import json
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from zo_fl.host import style

from .. import cli
from ..jobs import record
from . import comparison, figures, found, html_parts, runs, tables, tradeoff
from .html_parts import element
from .runs import Point, Run, SweepRuns
from .text_table import TextTable

_PROVENANCE = {
    "commit": "git.revision",
    "device": "devices.kind",
    "devices": "devices.count",
    "versions": "versions",
    "started": "started",
}


@style.own
def of(read: found.Found, root: Path) -> str:
    """Returns the page as HTML; ``root`` is the folder of all runs, and of ``pareto``'s picture."""
    links = [
        element("a", escape(sweep.record["title"]), href=f"#{_anchor(sweep)}")
        for sweep in read.sweeps
    ]
    parts = [element("h1", "Federated learning with zeroth-order clients: results")]
    if len(links) > 1:
        parts.append(element("nav", " ".join(links)))
    parts.append(_provenance([run for sweep in read.sweeps for run in sweep.runs]))
    if read.problems:
        parts.append(html_parts.bullets("Could not be read", read.problems))
    parts += _trade_off(root)
    parts += [_section(sweep) for sweep in read.sweeps]
    return html_parts.document("Results", "\n".join(parts))


def _trade_off(root: Path) -> list[str]:
    """Returns the section of the file that ``pareto`` wrote, none if there is no such file."""
    known = tradeoff.from_json(record.read_json(root / "pareto" / "pareto.json")[0])
    if known is None:
        return []
    points, with_paper = known
    parts = [
        element("h2", "What a low-resource client pays", id="pareto"),
        html_parts.table(tradeoff.table(points)),
        html_parts.picture("pareto", tradeoff.draw(points, with_paper)),
    ]
    return [element("section", "\n".join(parts))]


def _section(sweep: SweepRuns) -> str:
    cells = comparison.cells(sweep)
    parts = [element("h2", escape(tables.title(sweep)), id=_anchor(sweep))]
    if sweep.record["command"]:
        parts.append(html_parts.commands([cli.as_called(sweep.record["command"])]))
    for made in tables.tables_of(sweep, cells):
        parts.append(html_parts.table(made, lambda point: f"#{_anchor(sweep, point)}"))
    parts += [element("p", escape(line), class_="note") for line in tables.notes(sweep, cells)]
    if lacking := runs.unfinished(sweep):
        title = f"Missing: {len(lacking)} of {len(sweep.runs)}"
        parts.append(html_parts.bullets(title, lacking))
    for name, figure in figures.of(sweep, titled=False).items():
        parts.append(html_parts.picture(name, figure))
    if not sweep.is_plain():  # their only table has the costs
        parts.append(html_parts.table(tables.costs(sweep)))
    parts.append(element("h3", "Commands and configs"))
    parts += [_commands(sweep, point) for point in sweep.points()]
    return element("section", "\n".join(parts))


def _provenance(all_runs: Iterable[Run]) -> str:
    """Returns the origin of the numbers; if runs differ, all values."""
    known = [run.provenance for run in all_runs if run.provenance]
    if not known:
        return element("p", "No run has begun yet.")
    rows = []
    for name, field in _PROVENANCE.items():
        told = [runs.dotted(one, field) for one in known]
        values = sorted({_flat(value) for value in told if value is not None})
        if not values:  # a wheel has no commit; its version is among the versions
            continue
        if name == "commit":
            values = [value[:12] for value in values]
        if name == "started":
            values = [" to ".join(dict.fromkeys((values[0], values[-1])))]
        if unknown := told.count(None):
            values.append(f"none in {unknown} of {len(known)} runs")
        rows.append([name, "; ".join(values)])
    changed = sum(bool(runs.dotted(one, "git.dirty")) for one in known)
    if changed:
        rows.append(["changed files", f"not committed in {changed} of {len(known)} runs"])
    return html_parts.table(TextTable("Provenance", ["", ""], rows, num_names=2))


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    return str(value)


def _commands(sweep: SweepRuns, point: Point) -> str:
    """Returns the commands that repeat the runs of a point, and the config of the first seed."""
    of_point = sweep.of(*point)
    parts = [element("p", escape(", ".join(filter(None, point))), class_="title")]
    parts.append(html_parts.commands(found.command_of(sweep, run) for run in of_point))
    first = next((run for run in of_point if run.config), None)
    if first is not None:
        config = json.dumps(first.config, indent=2, sort_keys=True)
        text = element("pre", element("code", escape(config)))
        parts.append(html_parts.folded(f"Config of seed {first.seed}", text))
    return element("div", "\n".join(parts), class_="run", id=_anchor(sweep, point))


def _anchor(sweep: SweepRuns, point: Point | None = None) -> str:
    """Returns the id of a sweep's section, or of a point's commands in it."""
    place = "" if point is None else f"--{sweep.points().index(point)}"
    return quote(sweep.name, safe="") + place
