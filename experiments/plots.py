"""Pictures of all sweeps and runs in a folder, the paper's values marked, as PNG and SVG.

    python -m experiments.plots --runs=R [--out=R/plots]

The pivot (the paper's Figure 4), scale and distribution of directions (6), variance against S (7);
any other sweep as dots with intervals; of each also the curves (3). Exit status 0, also where runs
are missing, or 2 for bad input and where there is nothing.
"""

from . import cli
from .reporting import folders


def main(argv: list[str]) -> int:
    """Writes the pictures of the flags' folder and returns the exit status."""
    from .reporting import found, picture_files, runs

    del argv
    root, out = folders.given_folders("plots")
    read = found.read(root)
    for sweep in read.sweeps:
        written = picture_files.write(sweep, out)
        lacking = len(runs.unfinished(sweep))
        of_all = f" ({lacking} of {len(sweep.runs)} runs missing)" if lacking else ""
        print(f"{sweep.name}: {', '.join(map(str, written)) or 'nothing to draw yet'}{of_all}")
    for problem in read.problems:
        print(problem)
    return 0


if __name__ == "__main__":
    folders.define_flags("plots")
    cli.run(main)
