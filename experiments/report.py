"""Writes one HTML page about all sweeps and runs in a folder: tables, pictures, costs, commands.

    zo-fl report --runs=R [--out=R/report.html]

The page needs nothing else: no network, no scripts, pictures inside. Each result leads to the
commands of its runs. Exit status 0, also where runs are missing (it says which), or 2 for bad input
and where there is nothing.
"""

from . import cli


def define_flags() -> None:
    """Defines the command's flags."""
    cli.define_folders("report.html")


def main(argv: list[str]) -> int:
    """Writes the page of the flags' folder and returns the exit status."""
    from .analysis import found, page, runs

    del argv
    root, out = cli.given_folders("report.html")
    text = page.of(found.read(root), root)
    with runs.writing(out.parent):
        out.write_text(text, encoding="utf-8")
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)
