"""The picture and the table of what methods buy for bytes, memory and passes, as files."""

import json
from pathlib import Path

import matplotlib
import numpy as np

from zo_fl.engine.errors import ConfigError

from . import text_tables, tradeoff
from .picture_files import SAME_FILE
from .tradeoff import TradeOff


def write(points: list[TradeOff], out: Path, with_paper: bool) -> None:
    """Writes the picture and the table.

    Raises:
      ConfigError: they cannot be written.
    """
    made = tradeoff.table(points)
    figure = tradeoff.draw(points, "", with_paper)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(SAME_FILE):
            figure.savefig(out / "pareto.png")
            figure.savefig(out / "pareto.svg", metadata={"Date": None})
        (out / "pareto.md").write_text(text_tables.markdown(made), encoding="utf-8")
        rows = [
            [p.name, np.mean(p.accuracies), len(p.accuracies), p.uplink, p.memory, p.passes]
            for p in points
        ]
        headers = ["name", "accuracy", "n", "uplink", "memory", "passes"]
        (out / "pareto.csv").write_text(text_tables.to_csv(headers, rows), encoding="utf-8")
        text = json.dumps(tradeoff.to_json(points, with_paper), indent=1)
        (out / "pareto.json").write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot write to the folder {out} ({error.strerror}); change --out"
        ) from None
