"""Figures as files, which are the same if the figures are."""

from pathlib import Path
from typing import Any

import matplotlib

from zo_fl.engine.errors import ConfigError

from . import figures
from .runs import SweepRuns

# The same picture is the same file.
SAME_FILE: Any = {"svg.hashsalt": "zo_fl", "svg.fonttype": "path"}


def write(sweep: SweepRuns, out: Path) -> list[Path]:
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
