"""Tables of text and how they are written: Markdown, LaTeX, CSV and the terminal."""

import csv
import io
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

_MARKDOWN = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_[]<>|#"} | {"\n": " "})
_LATEX = str.maketrans(
    {mark: f"\\{mark}" for mark in "&%$#_{}"}
    | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "–": "--",
        "−": "$-$",
        "±": r"$\pm$",
        "\n": " ",
    }
)


Point = tuple[str, str]  # row and column of a sweep


class TextTable(NamedTuple):
    """A table whose first ``num_names`` columns are names and the rest numbers.

    ``points`` says which point of the sweep a (row, column) of the table shows.
    """

    title: str
    headers: list[str]
    rows: list[list[str]]
    num_names: int = 1
    points: Mapping[tuple[int, int], Point] = MappingProxyType({})


def markdown(table: TextTable) -> str:
    """Returns a table in GitHub's Markdown; everything in it is escaped."""
    marks = ["---" if _is_name(table, i) else "---:" for i in range(len(table.headers))]
    lines = [[_markdown_cell(text) for text in row] for row in (table.headers, *table.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], marks, *lines[1:])) + "\n"


def escape_markdown(text: str) -> str:
    """Returns text in which Markdown sees no marks."""
    return text.translate(_MARKDOWN)


def latex(table: TextTable) -> str:
    """Returns a table as a LaTeX ``tabular``, no packages needed; everything in it is escaped."""
    columns = "".join("l" if _is_name(table, i) else "r" for i in range(len(table.headers)))
    head, *body = (
        " & ".join(escape_latex(text) for text in row) + r" \\"
        for row in (table.headers, *table.rows)
    )
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\hline", head, r"\hline", *body, r"\hline"]
    title = [f"% {table.title}".replace("\n", " ")] if table.title else []
    return "\n".join([*title, *lines, r"\end{tabular}"]) + "\n"


def escape_latex(text: str) -> str:
    """Returns text as LaTeX prints it."""
    escaped = text.translate(_LATEX)
    # After the end of a row, LaTeX takes a bracket for a distance.
    return f"{{[}}{escaped[1:]}" if escaped.startswith("[") else escaped


def to_csv(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Returns rows as CSV; None is an empty field."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(headers)
    writer.writerows(rows)
    return file.getvalue()


def terminal(table: TextTable) -> Table:
    """Returns a table for a rich console, without its title: that may be wider."""
    made = Table()
    for i, header in enumerate(table.headers):
        if _is_name(table, i):
            made.add_column(Text(header), overflow="fold")
        else:  # names break, numbers never
            widest = max((len(row[i]) for row in table.rows), default=0)
            made.add_column(Text(header), justify="right", min_width=widest)
    for row in table.rows:
        made.add_row(*(Text(text) for text in row))
    return made


def _is_name(table: TextTable, column: int) -> bool:
    return column < table.num_names


def _markdown_cell(text: str) -> str:
    return escape_markdown(text) or " "
