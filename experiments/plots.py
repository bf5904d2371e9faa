"""Pictures of all sweeps and runs in a folder, the paper's values marked, as PNG and SVG.

    python -m experiments.plots --runs=R [--out=R/plots]

The pivot (the paper's Figure 4), scale and distribution of directions (6), variance against S (7);
any other sweep as dots with intervals; of each also the curves (3). Exit status 0, also where runs
are missing, or 2 for bad input and where there is nothing.
"""

from pathlib import Path
from typing import Any

import matplotlib

from zo_fl.core.errors import ConfigError

from . import cli
from .reporting import figures, found, runs

# The same picture is the same file.
SAME_FILE: Any = {"svg.hashsalt": "zo_fl", "svg.fonttype": "path"}


def main(argv: list[str]) -> int:
    """Writes the pictures of the flags' folder and returns the exit status."""
    del argv
    root, out = found.given_folders("plots")
    read = found.read(root)
    for sweep in read.sweeps:
        written = write(sweep, out)
        lacking = len(runs.unfinished(sweep))
        of_all = f" ({lacking} of {len(sweep.runs)} runs missing)" if lacking else ""
        print(f"{sweep.name}: {', '.join(map(str, written)) or 'nothing to draw yet'}{of_all}")
    for problem in read.problems:
        print(problem)
    return 0


def write(sweep: runs.SweepRuns, out: Path) -> list[Path]:
    """Writes NAME.png and NAME.svg of every figure of a sweep, and returns the PNGs.

    Raises:
      ConfigError: they cannot be written.
    """
    written = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.of(sweep).items():
            path = out / f"{name}.png"
            with matplotlib.rc_context(SAME_FILE):
                figure.savefig(path)
                figure.set_layout_engine("none")  # what was found stays: it took half the time
                figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
            written.append(path)
    except OSError as error:
        raise ConfigError(
            f"cannot write to the folder {out} ({error.strerror}); change --out"
        ) from None
    return written


if __name__ == "__main__":
    found.define_flags("plots")
    cli.run(main)
