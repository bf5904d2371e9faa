"""A table of text, and its forms: Markdown, LaTeX, HTML (``html_parts``) and the terminal."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .runs import Point

_NAME = 16  # characters that a name keeps on a narrow terminal
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


class TextTable(NamedTuple):
    """A table whose first ``num_names`` columns are names and the rest numbers.

    ``points`` maps (row, column) of the table to the point of the sweep that is shown there.
    """

    title: str
    headers: list[str]
    rows: list[list[str]]
    num_names: int = 1
    points: Mapping[tuple[int, int], Point] = MappingProxyType({})

    def markdown(self) -> str:
        """Returns the table in GitHub's Markdown; everything in it is escaped."""
        marks = ["---" if i < self.num_names else "---:" for i in range(len(self.headers))]
        head, *body = (
            [escape_markdown(text) or " " for text in row] for row in (self.headers, *self.rows)
        )
        return "".join(f"| {' | '.join(line)} |\n" for line in (head, marks, *body))

    def latex(self) -> str:
        """Returns a LaTeX ``tabular`` that needs no packages; everything in it is escaped."""
        columns = "".join("l" if i < self.num_names else "r" for i in range(len(self.headers)))
        head, *body = (
            " & ".join(map(escape_latex, row)) + r" \\" for row in (self.headers, *self.rows)
        )
        title = [f"% {self.title}".replace("\n", " ")] if self.title else []
        lines = [rf"\begin{{tabular}}{{{columns}}}", r"\hline", head, r"\hline", *body, r"\hline"]
        return "\n".join([*title, *lines, r"\end{tabular}"]) + "\n"

    def print(self, console: Console) -> None:
        """Prints the table under its title.

        Names fold where the terminal is narrow; numbers are never cut, so that a table of many
        columns may be wider than the terminal.
        """
        if self.title:
            console.print(self.title, style="bold", markup=False, soft_wrap=True)
        table = Table()
        needed = 1  # a column takes two spaces and a line beside its text
        for i, header in enumerate(self.headers):
            widest = max((len(row[i]) for row in self.rows), default=0)
            words = max(map(len, header.split()), default=0)
            least = max(words, min(widest, _NAME) if i < self.num_names else widest)
            justify = "left" if i < self.num_names else "right"
            table.add_column(Text(header), justify=justify, overflow="fold", min_width=least)
            needed += least + 3
        for row in self.rows:
            table.add_row(*map(Text, row))
        console.print(table, width=max(console.width, needed), crop=False, no_wrap=False)


def escape_markdown(text: str) -> str:
    """Returns text in which Markdown sees no marks."""
    return text.translate(_MARKDOWN)


def escape_latex(text: str) -> str:
    """Returns text as LaTeX prints it."""
    escaped = text.translate(_LATEX)
    # After the end of a row, LaTeX takes a bracket for a distance.
    return f"{{[}}{escaped[1:]}" if escaped.startswith("[") else escaped
