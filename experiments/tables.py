"""Tables of all sweeps in a folder, beside the paper's, as text, Markdown, CSV and LaTeX.

    python -m experiments.tables --runs=R [--out=R/tables]

Cells are mean(std) over seeds of the final test accuracy in %. Runs that did not converge are "nc"
and counted; what is missing, unfinished or damaged is listed, and the rest is shown. Exit status 0,
or 2 for bad input.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from zo_fl.core.errors import ConfigError

from . import cli
from .reporting import comparison, paper, runs, text_tables
from .reporting.comparison import Cell
from .reporting.runs import SweepRuns
from .reporting.text_tables import TextTable

_NONE = "–"
_CSV = (
    *("row", "column", "n", "seeds", "not_converged", "mean", "std", "delta_lo"),
    *("paper_mean", "paper_std", "minus_reference", "half_width_95", "pairs"),
)


def main(argv: list[str]) -> int:
    """Prints and writes the tables of the flags' folder and returns the exit status."""
    del argv
    root, out = runs.given_folders("tables")
    found = runs.read(root)
    console = Console(highlight=False)
    for sweep in found.sweeps:
        show(sweep, console)
        write(sweep, out)
    for problem in found.problems:
        console.print(problem, markup=False, soft_wrap=True)
    if found.sweeps:
        console.print(f"written to {out}", markup=False, soft_wrap=True)
    return 0


def show(sweep: SweepRuns, console: Console) -> None:
    """Prints a sweep's tables, its notes and what it lacks."""
    cells = comparison.cells(sweep)
    for table in tables_of(sweep, cells):
        console.print(table.title, style="bold", markup=False, soft_wrap=True)
        console.print(text_tables.terminal(table))
    lacking = runs.unfinished(sweep)
    shown = [f"missing: {line}" for line in lacking[:10]]
    shown += [f"missing: {len(lacking) - 10} more"] if len(lacking) > 10 else []
    for line in (*notes(sweep, cells), *shown):
        console.print(line, markup=False, soft_wrap=True)
    console.print()


def write(sweep: SweepRuns, out: Path) -> None:
    """Writes NAME.md, NAME.csv and NAME.tex of a sweep.

    Raises:
      ConfigError: they cannot be written.
    """
    cells = comparison.cells(sweep)
    texts = {"md": _markdown(sweep, cells), "csv": _csv(cells), "tex": _latex(sweep, cells)}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for suffix, text in texts.items():
            (out / f"{sweep.name}.{suffix}").write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot write to the folder {out} ({error.strerror}); change --out"
        ) from None


def tables_of(sweep: SweepRuns, cells: Sequence[Cell]) -> list[TextTable]:
    """Returns the table of all details, before it one like the paper's if it has columns."""
    details = _details(sweep, cells)
    return [_overview(sweep, cells), details] if len(sweep.columns) > 1 else [details]


def notes(sweep: SweepRuns, cells: Sequence[Cell]) -> list[str]:
    """Returns what a reader has to know: the measure, the data, the paper's source, nc."""
    record, configs = sweep.record, [run.config for run in sweep.runs if run.config]
    seconds = record["quantity"] == "seconds"
    what = "seconds a round of the last phase (median)" if seconds else "final test accuracy in %"
    found = [f"Cells: {what}, mean(std) over seeds; n: seeds counted, of all."]
    reference = record["reference"]
    if any(cell.difference for cell in cells):
        found.append(
            f"Against {reference}: differences paired by seed, Student's 95 % interval for n >= 2."
        )
    if any(cell.num_nc for cell in cells):
        found.append(
            "nc: did not converge, that is the loss stopped being finite or the final accuracy is "
            "below 1.1 / classes; left out of means and differences."
        )
    names = sorted({str(runs.dotted(config, "data.name")) for config in configs})
    if record["table"] and names and not any(paper.is_paper_data(config) for config in configs):
        found.append(f"Data: {', '.join(names)}, not the paper's; its figures are left out.")
    elif record["table"] and names and not any(cell.paper for cell in cells):
        found.append(
            "The setting is not the paper's (experiments/reporting/paper.json); "
            "its figures are left out."
        )
    compared = any(cell.paper for cell in cells)
    if compared:
        found.append(f"Paper: {paper.source(record['table'])}.")
    note = paper.note(record["table"], compared)
    return [*found, note] if note else found


def cell_text(cell: Cell) -> str:
    """Returns ``24.8(4.8)``, with the number of runs that did not converge, or ``nc``."""
    digits = 2 if cell.values and max(cell.values.values()) < 10 else 1
    text = comparison.mean_std(list(cell.values.values()), digits)
    if not cell.num_nc:
        return text
    return f"{text}, {cell.num_nc} nc" if cell.values else "nc"


def paper_text(figure: paper.Figure | None) -> str:
    """Returns the paper's result as it prints it."""
    if figure is None:
        return _NONE
    if not figure.converged:
        return "nc"
    spread = "" if figure.std is None else f"({figure.std:.1f})"
    return f"{_NONE if figure.mean is None else f'{figure.mean:.1f}'}{spread}"


def _overview(sweep: SweepRuns, cells: Sequence[Cell]) -> TextTable:
    """Returns rows and columns as in the paper, its figures in a row below ours."""
    at = {(cell.row, cell.column): cell for cell in cells}
    rows = []
    for row in sweep.rows:
        here = [at.get((row, column)) for column in sweep.columns]
        rows.append([row, *(cell_text(cell) if cell else _NONE for cell in here)])
        if any(cell and cell.paper for cell in here):
            rows.append(["  paper", *(paper_text(cell.paper if cell else None) for cell in here)])
    return TextTable(_title(sweep), ["", *sweep.columns], rows)


def _details(sweep: SweepRuns, cells: Sequence[Cell]) -> TextTable:
    """Returns a line a point; columns of which nothing is known are left out."""
    reference, seconds = sweep.record["reference"], sweep.record["quantity"] == "seconds"
    columns = {
        "result": [cell_text(cell) for cell in cells],
        "n": [f"{len(cell.values)}/{cell.num_seeds}" for cell in cells],
        "paper": [paper_text(cell.paper) for cell in cells],
        "ours − paper": [_minus_paper(cell) for cell in cells],
        "delta_lo": [_NONE if seconds else comparison.mean_std(cell.gains) for cell in cells],
        f"minus {reference} [95 %]": [_difference(cell) for cell in cells],
    }
    kept = {name: column for name, column in columns.items() if set(column) != {_NONE}}
    rows = [
        [cell.row, cell.column, *(column[i] for column in kept.values())]
        for i, cell in enumerate(cells)
    ]
    title = _title(sweep) + (": details" if len(sweep.columns) > 1 else "")
    return TextTable(title, ["row", "column", *kept], rows, num_names=2)


def _title(sweep: SweepRuns) -> str:
    table = sweep.record["table"]
    return f"{sweep.name}: {sweep.record['title']}" + (f" ({table} of the paper)" if table else "")


def _minus_paper(cell: Cell) -> str:
    ours = comparison.mean(list(cell.values.values()))
    if ours is None or cell.paper is None or cell.paper.mean is None:
        return _NONE
    return _signed(ours - cell.paper.mean)


def _difference(cell: Cell) -> str:
    if cell.difference is None:
        return _NONE
    center, half = cell.difference.mean, cell.difference.half_width
    interval = "" if half is None else f" [{_signed(center - half)}, {_signed(center + half)}]"
    return _signed(center) + interval


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}".replace("-", "−")  # + 0.0: no minus zero


def _markdown(sweep: SweepRuns, cells: Sequence[Cell]) -> str:
    parts = [f"# {text_tables.escape_markdown(_title(sweep))}\n"]
    parts += [text_tables.markdown(table) for table in tables_of(sweep, cells)]
    parts += [f"{text_tables.escape_markdown(line)}\n" for line in notes(sweep, cells)]
    lacking = runs.unfinished(sweep)
    if lacking:
        lines = "".join(f"- {text_tables.escape_markdown(line)}\n" for line in lacking)
        parts.append(f"Missing:\n\n{lines}")
    return "\n".join(parts)


def _latex(sweep: SweepRuns, cells: Sequence[Cell]) -> str:
    comments = "".join(f"% {line}\n" for line in notes(sweep, cells))
    return comments + "\n".join(text_tables.latex(table) for table in tables_of(sweep, cells))


def _csv(cells: Sequence[Cell]) -> str:
    """Returns a line a point, numbers in full."""
    lines = []
    for cell in cells:
        values, figure, difference = list(cell.values.values()), cell.paper, cell.difference
        lines.append(
            [
                *(cell.row, cell.column, len(values), cell.num_seeds, cell.num_nc),
                *(comparison.mean(values), comparison.std(values), comparison.mean(cell.gains)),
                *((figure.mean, figure.std) if figure else (None, None)),
                *(difference or (None, None, None)),
            ]
        )
    return text_tables.to_csv(_CSV, lines)


if __name__ == "__main__":
    runs.define_flags("tables")
    cli.run(main)
