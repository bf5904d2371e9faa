"""Tables of all sweeps and runs in a folder, beside the paper's, as text, Markdown, CSV and LaTeX.

    python -m experiments.tables --runs=R [--out=R/tables]

Cells are mean(std) over seeds of the final test accuracy in %. Runs whose loss did not stay finite
are "nc" and counted; what is missing, unfinished or damaged is listed, and the rest is shown. Runs
of ``experiments.main`` have a row each, or one for all that differ in nothing but their seeds. Exit
status 0, or 2 for bad input and where there is nothing.
"""

from . import cli
from .reporting import folders


def main(argv: list[str]) -> int:
    """Prints and writes the tables of the flags' folder and returns the exit status."""
    from rich.console import Console

    from .reporting import found, table_files

    del argv
    root, out = folders.given_folders("tables")
    read = found.read(root)
    console = Console(highlight=False)
    for sweep in read.sweeps:
        table_files.show(sweep, console)
        table_files.write(sweep, out)
    for problem in read.problems:
        console.print(problem, markup=False, soft_wrap=True)
    console.print(f"written to {out}", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    folders.define_flags("tables")
    cli.run(main)
