"""Draws all sweeps and runs in a folder, the paper's values marked, as PNG and SVG.

    zo-fl plots --runs=R [--out=R/plots]

The pivot (the paper's Figure 4), scale and distribution of directions (6), variance against S (7);
any other sweep as dots with intervals; and the curves of each (3). Exit status 0, also where runs
are missing, or 2 for bad input and where there is nothing.
"""

from . import cli


def define_flags() -> None:
    """Defines the command's flags."""
    cli.define_folders("plots")


def main(argv: list[str]) -> int:
    """Writes the pictures of the flags' folder and returns the exit status."""
    from .analysis import figures, found, runs

    del argv
    root, out = cli.given_folders("plots")
    read = found.read(root)
    for sweep in read.sweeps:
        written = figures.write(sweep, out)
        lacking = len(runs.unfinished(sweep))
        of_all = f" ({lacking} of {len(sweep.runs)} runs missing)" if lacking else ""
        print(f"{sweep.name}: {', '.join(map(str, written)) or 'nothing to draw yet'}{of_all}")
    for problem in read.problems:
        print(problem)
    return 0


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)
