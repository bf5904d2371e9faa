"""The tables of a sweep, or of runs outside of sweeps, with notes for their readers."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console

from zo_fl.host import units
from zo_fl.host.units import NONE

from . import comparison, paper, runs
from .comparison import Cell, mean_std
from .runs import Point, Run, SweepRuns
from .text_table import TextTable, escape_markdown

_AT_CHANCE = "†"
_COSTS = {
    "sent by clients": ("uplink_bytes", units.num_bytes),
    "sent to clients": ("downlink_bytes", units.num_bytes),
    "forward passes": ("forward_passes", units.integer),
    "time": ("wall_seconds", units.duration),
}
_SUMMED = ("pivot_accuracy", "uplink_bytes", "downlink_bytes", "forward_passes", "wall_seconds")
_CSV = (
    *("row", "column", "n", "seeds", "not_converged", "at_chance", "mean", "std", "delta_lo"),
    *("paper_mean", "paper_std", "minus_reference", "half_width_95", "pairs"),
    *_SUMMED,
)
_MEASURES = {
    "accuracy": "final test accuracy in %",
    "seconds": "seconds a round of the last phase (median)",
    "validation": "final accuracy on the clients' validation examples in %",
}


def show(sweep: SweepRuns, console: Console) -> None:
    """Prints a sweep's tables, its notes and what it lacks."""
    cells = comparison.cells(sweep)
    console.print(f"{sweep.name}: {title(sweep)}", style="bold", markup=False, soft_wrap=True)
    for table in tables_of(sweep, cells):
        table.print(console)
    lacking = runs.unfinished(sweep)
    if len(lacking) > 10:
        lacking = [*lacking[:10], f"{len(lacking) - 10} more"]
    for line in (*notes(sweep, cells), *(f"missing: {line}" for line in lacking)):
        console.print(line, markup=False, soft_wrap=True)
    console.print()


def write(sweep: SweepRuns, out: Path) -> None:
    """Writes NAME.md, NAME.csv and NAME.tex of a sweep.

    Raises:
      ConfigError: they cannot be written.
    """
    cells = comparison.cells(sweep)
    with runs.writing(out):
        (out / f"{sweep.name}.md").write_text(_markdown(sweep, cells), encoding="utf-8")
        (out / f"{sweep.name}.tex").write_text(_latex(sweep, cells), encoding="utf-8")
        rows = (_csv_row(sweep, cell) for cell in cells)
        write_csv(out / f"{sweep.name}.csv", _CSV, rows)


def write_csv(path: Path, headers: Sequence[str], rows) -> None:
    """Writes a CSV file; None is an empty field."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(headers)
        writer.writerows(rows)


def title(sweep: SweepRuns) -> str:
    """Returns the heading above all tables of a sweep."""
    table = sweep.record["table"]
    return sweep.record["title"] + (f" ({table} of the paper)" if table else "")


def tables_of(sweep: SweepRuns, cells: Sequence[Cell]) -> list[TextTable]:
    """Returns the table of all details, and before it one like the paper's if it has columns."""
    if sweep.is_plain():
        return [_plain(sweep, cells)]
    details = _details(sweep, cells)
    return [_overview(sweep, cells), details] if len(sweep.columns) > 1 else [details]


def costs(sweep: SweepRuns) -> TextTable:
    """Returns the costs of each point, means over finished runs."""
    rows = [
        [row, column, *_costs_of(runs.finished(sweep.of(row, column)), _COSTS)]
        for row, column in sweep.points()
    ]
    caption = "Costs, mean over seeds; warm-ups that are shared count in each"
    return TextTable(caption, ["row", "column", *_COSTS], rows, num_names=2)


def notes(sweep: SweepRuns, cells: Sequence[Cell]) -> list[str]:
    """Returns notes for a reader: the measure, the marks, the data, the paper's source."""
    what = _MEASURES.get(sweep.record["quantity"], _MEASURES["accuracy"])
    what = what.removeprefix("final ") if sweep.is_plain() else what
    found = [f"Cells: {what}, mean(std) over seeds; n: seeds counted, of all."]
    if any(cell.difference for cell in cells):
        found.append(
            f"Against {sweep.record['reference']}: differences paired by seed, Student's 95 % "
            "interval for n >= 2."
        )
    if any(cell.num_nc for cell in cells):
        found.append(
            "nc: did not converge, that is the loss stopped being finite; left out of means and "
            "differences."
        )
    if any(cell.num_at_chance for cell in cells):
        found.append(
            f"{_AT_CHANCE}: of some seeds the final accuracy is below 1.1 / classes, that is at "
            "chance; they count in means and differences."
        )
    return found + _paper_notes(sweep, cells)


def cell_text(cell: Cell) -> str:
    """Returns ``24.8(4.8)``, marked if runs are at chance, with the number of nc runs."""
    digits = 2 if cell.values and max(cell.values.values()) < 10 else 1
    text = mean_std(list(cell.values.values()), digits)
    text += _AT_CHANCE if cell.num_at_chance else ""
    if not cell.num_nc:
        return text
    return f"{text}, {cell.num_nc} nc" if cell.values else "nc"


def paper_text(figure: paper.Figure | None) -> str:
    """Returns the paper's result as it prints it."""
    if figure is None:
        return NONE
    if not figure.converged:
        return "nc"
    mean = NONE if figure.mean is None else f"{figure.mean:.1f}"
    return mean if figure.std is None else f"{mean}({figure.std:.1f})"


def _overview(sweep: SweepRuns, cells: Sequence[Cell]) -> TextTable:
    """Returns rows and columns as in the paper, with its figures in a row below ours."""
    at = {(cell.row, cell.column): cell for cell in cells}
    rows: list[list[str]] = []
    points: dict[tuple[int, int], Point] = {}
    for row in sweep.rows:
        here = [at.get((row, column)) for column in sweep.columns]
        points |= {
            (len(rows), i): (cell.row, cell.column) for i, cell in enumerate(here, 1) if cell
        }
        rows.append([row, *(cell_text(cell) if cell else NONE for cell in here)])
        if any(cell and cell.paper for cell in here):
            rows.append(["  paper", *(paper_text(cell.paper if cell else None) for cell in here)])
    return TextTable("", ["", *sweep.columns], rows, points=points)


def _details(sweep: SweepRuns, cells: Sequence[Cell]) -> TextTable:
    """Returns a line for each point; columns without any content are left out."""
    reference, seconds = sweep.record["reference"], sweep.record["quantity"] == "seconds"
    columns = {
        "result": [cell_text(cell) for cell in cells],
        "n": [_counted(cell) for cell in cells],
        "paper": [paper_text(cell.paper) for cell in cells],
        "ours − paper": [_minus_paper(cell) for cell in cells],
        "delta_lo": [NONE if seconds else mean_std(cell.gains) for cell in cells],
        f"minus {reference} [95 %]": [_difference(cell) for cell in cells],
    }
    kept = {name: column for name, column in columns.items() if set(column) != {NONE}}
    of_point = zip(*kept.values(), strict=True)
    rows = [[cell.row, cell.column, *texts] for cell, texts in zip(cells, of_point, strict=True)]
    caption = "Details" if len(sweep.columns) > 1 else ""
    place = 2 if "result" in kept else 0
    points = {(i, place): (cell.row, cell.column) for i, cell in enumerate(cells)}
    return TextTable(caption, ["row", "column", *kept], rows, num_names=2, points=points)


def _plain(sweep: SweepRuns, cells: Sequence[Cell]) -> TextTable:
    """Returns a line for runs that differ in their seeds alone: accuracy, bytes, time."""
    shown = ["sent by clients", "sent to clients", "time"]
    rows = []
    for cell in cells:
        finished = runs.finished(sweep.of(cell.row, cell.column))
        good = [run for run in finished if comparison.converged(run)]
        pivots = [100 * value for value in runs.numbers(good, "pivot_accuracy")]
        accuracy = [mean_std(pivots), cell_text(cell), mean_std(cell.gains)]
        rows.append([cell.row, _counted(cell), *accuracy, *_costs_of(finished, shown)])
    points = {(i, 3): (cell.row, cell.column) for i, cell in enumerate(cells)}
    headers = ["", "n", "at the pivot", "at the end", "gain", *shown]
    return TextTable("", headers, rows, points=points)


def _costs_of(finished: Sequence[Run], names: Iterable[str]) -> list[str]:
    shown = (_COSTS[name] for name in names)
    return [show(comparison.mean(runs.numbers(finished, field))) for field, show in shown]


def _paper_notes(sweep: SweepRuns, cells: Sequence[Cell]) -> list[str]:
    """Returns the source of the paper's figures, and why some are not shown."""
    table, configs = sweep.record["table"], [run.config for run in sweep.runs if run.config]
    if not table:
        return []
    found = []
    if configs and not any(map(paper.is_paper_data, configs)):
        names = sorted({str(runs.dotted(config, "data.name")) for config in configs})
        found.append(f"Data: {', '.join(names)}, not the paper's; its figures are left out.")
    differing: dict[tuple[str, ...], list[str]] = {}
    for cell in cells:
        if cell.differs:
            differing.setdefault(cell.differs, []).append(f"{cell.row}, {cell.column}")
    for phrases, points in differing.items():
        found.append(
            f"Not the paper's setting, its figure is left out: {'; '.join(points)}: "
            f"{', '.join(phrases)}."
        )
    compared = any(cell.paper for cell in cells)
    found += [f"Paper: {paper.source(table)}."] if compared else []
    note = paper.note(table, compared)
    return [*found, note] if note else found


def _counted(cell: Cell) -> str:
    chance = f", {cell.num_at_chance} at chance" if cell.num_at_chance else ""
    return f"{len(cell.values)}/{cell.num_seeds}{chance}"


def _minus_paper(cell: Cell) -> str:
    ours, theirs = cell.mean(), cell.paper and cell.paper.mean
    return NONE if ours is None or theirs is None else _signed(ours - theirs)


def _difference(cell: Cell) -> str:
    if cell.difference is None:
        return NONE
    center, half = cell.difference.mean, cell.difference.half_width
    interval = "" if half is None else f" [{_signed(center - half)}, {_signed(center + half)}]"
    return _signed(center) + interval


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}".replace("-", "−")  # + 0.0: no minus zero


def _markdown(sweep: SweepRuns, cells: Sequence[Cell]) -> str:
    parts = [f"# {escape_markdown(title(sweep))}\n"]
    for table in tables_of(sweep, cells):
        parts += [f"**{escape_markdown(table.title)}**\n"] if table.title else []
        parts.append(table.markdown())
    parts += [f"{escape_markdown(line)}\n" for line in notes(sweep, cells)]
    if lacking := runs.unfinished(sweep):
        parts.append("Missing:\n\n" + "".join(f"- {escape_markdown(line)}\n" for line in lacking))
    return "\n".join(parts)


def _latex(sweep: SweepRuns, cells: Sequence[Cell]) -> str:
    lines = (title(sweep), *notes(sweep, cells))
    comments = "".join(f"% {line.replace(chr(10), ' ')}\n" for line in lines)
    return comments + "\n".join(table.latex() for table in tables_of(sweep, cells))


def _csv_row(sweep: SweepRuns, cell: Cell) -> list[object]:
    """Returns a point with its numbers in full; sums are means over seeds."""
    values, figure = list(cell.values.values()), cell.paper
    finished = runs.finished(sweep.of(cell.row, cell.column))
    return [
        *(cell.row, cell.column, len(values), cell.num_seeds, cell.num_nc, cell.num_at_chance),
        *(comparison.mean(values), comparison.std(values), comparison.mean(cell.gains)),
        *((figure.mean, figure.std) if figure else (None, None)),
        *(cell.difference or (None, None, None)),
        *(comparison.mean(runs.numbers(finished, field)) for field in _SUMMED),
    ]
