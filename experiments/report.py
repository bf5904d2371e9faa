"""One HTML page about all sweeps in a folder: commands, tables, pictures, costs, configs.

    python -m experiments.report --runs=R [--out=R/report.html]

The page needs nothing else: no network, no scripts, pictures inside. Exit status 0, also where runs
are missing (it says which), or 2 for bad input.
"""

import base64
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from matplotlib.figure import Figure

from zo_fl.core.errors import ConfigError
from zo_fl.host import units

from . import cli, tables
from .reporting import comparison, figures, html_page, runs
from .reporting.html_page import element
from .reporting.runs import Run, SweepRuns
from .reporting.text_tables import TextTable

_PROVENANCE = {
    "commit": "git.revision",
    "device": "devices.kind",
    "devices": "devices.count",
    "versions": "versions",
    "started": "started",
}
_BETWEEN = {"started": " to ", "versions": "; "}


def main(argv: list[str]) -> int:
    """Writes the page of the flags' folder and returns the exit status."""
    del argv
    root, out = runs.given_folders("report.html")
    text = page(runs.read(root))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {out} ({error.strerror}); change --out") from None
    print(f"written to {out}")
    return 0


def page(found: runs.Found) -> str:
    """Returns the page as HTML."""
    names = [sweep.name for sweep in found.sweeps]
    links = [element("a", escape(name), href=f"#{_anchor(name)}") for name in names]
    parts = [element("h1", "Federated learning with zeroth-order clients: results")]
    if len(links) > 1:
        parts.append(element("nav", " ".join(links)))
    parts.append(_provenance([run for sweep in found.sweeps for run in sweep.runs]))
    if found.problems:
        parts.append(html_page.bullets("Could not be read", found.problems))
    parts += [_section(sweep) for sweep in found.sweeps]
    return html_page.document("Results", "\n".join(parts))


def _section(sweep: SweepRuns) -> str:
    record, cells = sweep.record, comparison.cells(sweep)
    table = f" ({record['table']} of the paper)" if record["table"] else ""
    parts = [
        element("h2", escape(f"{record['title']}{table}"), id=_anchor(sweep.name)),
        element("pre", escape(record["command"])),
    ]
    parts += [html_page.table(made) for made in tables.tables_of(sweep, cells)]
    parts += [element("p", escape(line), class_="note") for line in tables.notes(sweep, cells)]
    lacking = runs.unfinished(sweep)
    if lacking:
        parts.append(html_page.bullets(f"Missing: {len(lacking)} of {len(sweep.runs)}", lacking))
    for name, figure in figures.of(sweep).items():
        parts.append(_picture(f"{record['title']}: picture {name}; its numbers are above", figure))
    parts.append(html_page.table(_costs(sweep)))
    parts.append(_configs(sweep))
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


def _costs(sweep: SweepRuns) -> TextTable:
    """Returns means over finished runs of what a point cost."""
    shown = {
        "sent by clients": ("uplink_bytes", units.num_bytes),
        "sent to clients": ("downlink_bytes", units.num_bytes),
        "forward passes": ("forward_passes", units.integer),
        "time": ("wall_seconds", units.duration),
    }
    rows = []
    for row, column in dict.fromkeys((run.row, run.column) for run in sweep.runs):
        finished = runs.finished(sweep.of(row, column))
        costs = [show(comparison.mean(_numbers(finished, field))) for field, show in shown.values()]
        rows.append([row, column, *costs])
    title = "Costs, mean over seeds; warm-ups that are shared count in each"
    return TextTable(title, ["row", "column", *shown], rows, num_names=2)


def _numbers(finished: Sequence[Run], field: str) -> list[float]:
    values = [run.summary.get(field) for run in finished]
    return [value for value in values if isinstance(value, int | float)]


def _configs(sweep: SweepRuns) -> str:
    """Returns the resolved config of each point, folded; of seeds only the first."""
    parts = []
    for row, column in dict.fromkeys((run.row, run.column) for run in sweep.runs):
        first = next((run for run in sweep.of(row, column) if run.config), None)
        if first is not None:
            title = f"Config: {row}, {column}, seed {first.seed}"
            parts.append(html_page.folded(title, element("pre", escape(_as_json(first.config)))))
    return html_page.folded("Configs", "\n".join(parts)) if parts else ""


def _as_json(config: Mapping[str, Any]) -> str:
    return json.dumps(config, indent=2, sort_keys=True)


def _picture(title: str, figure: Figure) -> str:
    """Returns a figure as an SVG in the page, apart from it: its ids are its own."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    data = base64.b64encode(file.getvalue()).decode()
    return f'<figure><img alt="{escape(title)}" src="data:image/svg+xml;base64,{data}"></figure>'


def _anchor(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "-", name)


if __name__ == "__main__":
    runs.define_flags("report.html")
    cli.run(main)
