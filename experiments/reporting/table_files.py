"""A sweep's tables on the terminal, and as Markdown, CSV and LaTeX files."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from zo_fl.engine.errors import ConfigError

from . import comparison, result_tables, runs, text_tables
from .comparison import Cell
from .runs import SweepRuns

_SUMMED = ("pivot_accuracy", "uplink_bytes", "downlink_bytes", "forward_passes", "wall_seconds")
_CSV = (
    *("row", "column", "n", "seeds", "not_converged", "at_chance", "mean", "std", "delta_lo"),
    *("paper_mean", "paper_std", "minus_reference", "half_width_95", "pairs"),
    *_SUMMED,
)


def show(sweep: SweepRuns, console: Console) -> None:
    """Prints a sweep's tables, its notes and what it lacks."""
    cells = comparison.cells(sweep)
    title = f"{sweep.name}: {result_tables.title(sweep)}"
    console.print(title, style="bold", markup=False, soft_wrap=True)
    for table in result_tables.tables_of(sweep, cells):
        if table.title:
            console.print(table.title, style="bold", markup=False, soft_wrap=True)
        console.print(text_tables.Terminal(table))
    lacking = runs.unfinished(sweep)
    shown = [f"missing: {line}" for line in lacking[:10]]
    shown += [f"missing: {len(lacking) - 10} more"] if len(lacking) > 10 else []
    for line in (*result_tables.notes(sweep, cells), *shown):
        console.print(line, markup=False, soft_wrap=True)
    console.print()


def write(sweep: SweepRuns, out: Path) -> None:
    """Writes NAME.md, NAME.csv and NAME.tex of a sweep.

    Raises:
      ConfigError: they cannot be written.
    """
    cells = comparison.cells(sweep)
    texts = {"md": _markdown(sweep, cells), "csv": _csv(sweep, cells), "tex": _latex(sweep, cells)}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for suffix, text in texts.items():
            (out / f"{sweep.name}.{suffix}").write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot write to the folder {out} ({error.strerror}); change --out"
        ) from None


def _markdown(sweep: SweepRuns, cells: Sequence[Cell]) -> str:
    escape = text_tables.escape_markdown
    parts = [f"# {escape(result_tables.title(sweep))}\n"]
    for table in result_tables.tables_of(sweep, cells):
        parts += [f"**{escape(table.title)}**\n"] if table.title else []
        parts.append(text_tables.markdown(table))
    parts += [f"{escape(line)}\n" for line in result_tables.notes(sweep, cells)]
    lacking = runs.unfinished(sweep)
    if lacking:
        parts.append("Missing:\n\n" + "".join(f"- {escape(line)}\n" for line in lacking))
    return "\n".join(parts)


def _latex(sweep: SweepRuns, cells: Sequence[Cell]) -> str:
    lines = (result_tables.title(sweep), *result_tables.notes(sweep, cells))
    comments = "".join(f"% {line.replace(chr(10), ' ')}\n" for line in lines)
    made = result_tables.tables_of(sweep, cells)
    return comments + "\n".join(text_tables.latex(table) for table in made)


def _csv(sweep: SweepRuns, cells: Sequence[Cell]) -> str:
    """Returns a line a point, numbers in full; of what was summed up the means over seeds."""
    lines = []
    for cell in cells:
        values, figure, difference = list(cell.values.values()), cell.paper, cell.difference
        finished = runs.finished(sweep.of(cell.row, cell.column))
        lines.append(
            [
                *(cell.row, cell.column, len(values), cell.num_seeds),
                *(cell.num_nc, cell.num_at_chance),
                *(comparison.mean(values), comparison.std(values), comparison.mean(cell.gains)),
                *((figure.mean, figure.std) if figure else (None, None)),
                *(difference or (None, None, None)),
                *(comparison.mean(runs.numbers(finished, field)) for field in _SUMMED),
            ]
        )
    return text_tables.to_csv(_CSV, lines)
