"""The page of ``experiments.report``: all sweeps and runs of a folder, nothing outside of it."""

import base64
import io
import json
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from matplotlib.figure import Figure

from ..sweeping import record
from . import commands, comparison, figures, found, html_page, result_tables, runs, tradeoff
from .html_page import element
from .plain_runs import is_plain
from .runs import Run, SweepRuns
from .text_tables import Point, TextTable

_PROVENANCE = {
    "commit": "git.revision",
    "device": "devices.kind",
    "devices": "devices.count",
    "versions": "versions",
    "started": "started",
}
_BETWEEN = {"started": " to ", "versions": "; "}


def of(read: found.Found, root: Path | None = None) -> str:
    """Returns the page as HTML.

    Args:
      read: what was found.
      root: where; what ``experiments.pareto`` left there is shown too.
    """
    links = [
        element("a", escape(sweep.record["title"]), href=f"#{_anchor(sweep)}")
        for sweep in read.sweeps
    ]
    parts = [element("h1", "Federated learning with zeroth-order clients: results")]
    if len(links) > 1:
        parts.append(element("nav", " ".join(links)))
    parts.append(_provenance([run for sweep in read.sweeps for run in sweep.runs]))
    if read.problems:
        parts.append(html_page.bullets("Could not be read", read.problems))
    parts += _trade_off(root)
    parts += [_section(sweep) for sweep in read.sweeps]
    return html_page.document("Results", "\n".join(parts))


def _trade_off(root: Path | None) -> list[str]:
    """Returns the section of what ``experiments.pareto`` wrote, none if it did not."""
    content, problem = record.read_json(root / "pareto" / "pareto.json") if root else (None, "")
    known = None if problem else tradeoff.from_json(content)
    if known is None:
        return []
    points, with_paper = known
    parts = [
        element("h2", "What a low-resource client pays", id="pareto"),
        html_page.table(tradeoff.table(points)),
        _picture("pareto", tradeoff.draw(points, "", with_paper)),
    ]
    return [element("section", "\n".join(parts))]


def _section(sweep: SweepRuns) -> str:
    cells = comparison.cells(sweep)
    parts = [element("h2", escape(result_tables.title(sweep)), id=_anchor(sweep))]
    if sweep.record["command"]:
        parts.append(html_page.commands([sweep.record["command"]]))
    for made in result_tables.tables_of(sweep, cells):
        parts.append(html_page.table(made, lambda point: f"#{_anchor(sweep, point)}"))
    parts += [
        element("p", escape(line), class_="note") for line in result_tables.notes(sweep, cells)
    ]
    lacking = runs.unfinished(sweep)
    if lacking:
        parts.append(html_page.bullets(f"Missing: {len(lacking)} of {len(sweep.runs)}", lacking))
    for name, figure in figures.of(sweep, titled=False).items():
        parts.append(_picture(name, figure))
    if not is_plain(sweep):  # their only table has the costs
        parts.append(html_page.table(result_tables.costs(sweep)))
    parts.append(element("h3", "Commands and configs"))
    parts += [_commands(sweep, point) for point in sweep.points()]
    return element("section", "\n".join(parts))


def _provenance(all_runs: Iterable[Run]) -> str:
    """Returns where the numbers come from; of runs that differ, all values."""
    known = [run.provenance for run in all_runs if run.provenance]
    if not known:
        return element("p", "No run has begun yet.")
    rows = []
    for name, field in _PROVENANCE.items():
        values = sorted({_flat(runs.dotted(one, field)) for one in known})
        values = [value[:12] for value in values] if name == "commit" else values
        if name == "started":
            values = [values[0], values[-1]] if len(values) > 1 else values
        rows.append([name, _BETWEEN.get(name, ", ").join(values)])
    changed = sum(bool(runs.dotted(one, "git.dirty")) for one in known)
    if changed:
        rows.append(["changed files", f"not committed in {changed} of {len(known)} runs"])
    return html_page.table(TextTable("Provenance", ["", ""], rows, num_names=2))


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    return str(value)


def _commands(sweep: SweepRuns, point: Point) -> str:
    """Returns what repeats the runs of a point, and its config; of seeds only the first's."""
    of_point = sweep.of(*point)
    title = ", ".join(filter(None, point))
    parts = [element("p", escape(title), class_="title")]
    parts.append(html_page.commands(commands.of_run(sweep, run) for run in of_point))
    first = next((run for run in of_point if run.config), None)
    if first is not None:
        config = json.dumps(first.config, indent=2, sort_keys=True)
        text = element("pre", element("code", escape(config)))
        parts.append(html_page.folded(f"Config of seed {first.seed}", text))
    return element("div", "\n".join(parts), class_="run", id=_anchor(sweep, point))


def _picture(name: str, figure: Figure) -> str:
    """Returns a figure as an SVG in the page, apart from it: its ids are its own."""
    file = io.BytesIO()
    # Nothing behind it but the page, which may be dark.
    figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    data = base64.b64encode(file.getvalue()).decode()
    alt = escape(f"picture {name}; its numbers are in the table")
    return f'<figure><img alt="{alt}" src="data:image/svg+xml;base64,{data}"></figure>'


def _anchor(sweep: SweepRuns, point: Point | None = None) -> str:
    """Returns the id of a sweep's section, or of the commands of a point in it."""
    place = "" if point is None else f"--{sweep.points().index(point)}"
    return quote(sweep.name, safe="") + place
