"""Tables of text and how they are written: Markdown, LaTeX, CSV and the terminal."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

NONE = "–"
NOTHING = ("", NONE)
_LEAST = 16  # characters that a name keeps in a terminal
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


class Terminal(NamedTuple):
    """A table for a rich console, without its title: that may be wider.

    Where it is wider than the console, its columns of numbers are printed in several tables below
    each other, each with the names, and without the rows that have nothing in it.
    """

    table: TextTable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        names = list(range(self.table.num_names))
        parts = _parts(self.table, options.max_width)
        for part in parts:
            made = Table()
            for i in names:  # names break, numbers never
                made.add_column(Text(self.table.headers[i]), overflow="fold")
            for i in part:
                made.add_column(
                    Text(self.table.headers[i]), justify="right", min_width=_widest(self.table, i)
                )
            for row in self.table.rows:
                if len(parts) == 1 or any(row[i] not in NOTHING for i in part):
                    made.add_row(*(Text(row[i]) for i in (*names, *part)))
            yield made


def _parts(table: TextTable, width: int) -> list[list[int]]:
    """Returns the columns of numbers, cut into parts that fit beside the names.

    Names are given half of the width to break in, headers of numbers as much as a name.
    """
    edges, names = 3, range(table.num_names)  # of a column: a space on both sides, a line
    most = max(width // (2 * max(table.num_names, 1)) - edges, _LEAST)

    def of_texts(texts: list[str]) -> int:
        return min(max(map(len, texts)), max(most, *map(_longest_word, texts)))

    left = width - 1 - sum(edges + of_texts(_column(table, i)) for i in names)
    parts: list[list[int]] = [[]]
    room = left
    for i in range(table.num_names, len(table.headers)):
        needs = edges + max(_widest(table, i), of_texts([table.headers[i]]))
        if parts[-1] and needs > room:
            parts.append([])
            room = left
        parts[-1].append(i)
        room -= needs
    return parts


def _column(table: TextTable, i: int) -> list[str]:
    return [table.headers[i], *(row[i] for row in table.rows)]


def _widest(table: TextTable, i: int) -> int:
    return max((len(row[i]) for row in table.rows), default=0)


def _longest_word(text: str) -> int:
    return max(map(len, text.split()), default=0)


def _is_name(table: TextTable, column: int) -> bool:
    return column < table.num_names


def _markdown_cell(text: str) -> str:
    return escape_markdown(text) or " "
