"""Prints and writes tables of all sweeps and runs in a folder, as Markdown, CSV and LaTeX.

    zo-fl tables --runs=R [--out=R/tables]

Cells are mean(std) over seeds of the final test accuracy in %. Runs whose loss did not stay finite
are "nc" and counted; what is missing, unfinished or damaged is listed, and the rest is shown. Runs
outside of sweeps have a row each, or one for all that differ in nothing but their seeds. Exit
status 0, or 2 for bad input and where there is nothing.
"""

from . import cli


def define_flags() -> None:
    """Defines the command's flags."""
    cli.define_folders("tables")


def main(argv: list[str]) -> int:
    """Prints and writes the tables of the flags' folder and returns the exit status."""
    from rich.console import Console

    from .analysis import found, tables

    del argv
    root, out = cli.given_folders("tables")
    read = found.read(root)
    console = Console(highlight=False)
    for sweep in read.sweeps:
        tables.show(sweep, console)
        tables.write(sweep, out)
    print(*read.problems, f"written to {out}", sep="\n")
    return 0


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)
