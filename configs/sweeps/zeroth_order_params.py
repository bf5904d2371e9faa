"""Zeroth-order rounds of all parameters, or of some alone, each at three rates.

All send the same scalars. Fewer coordinates bear larger rates. Validation accuracy is shown, by
which to choose a rate before looking at the test accuracy of the same runs. Expect little: on
ten seeds of the quickstart no row, each at its best rate, gains more than all parameters
(docs/results/scalars.md; the row "A layer at a time" there is of commit 4ea9af5).

    python -m experiments.sweep --config=configs/quickstart.py \
        --sweep=configs/sweeps/zeroth_order_params.py --seeds=10 --workdir=R
"""

from typing import Any

from ml_collections import ConfigDict

from zo_fl.config import sweeps
from zo_fl.config.sweeps import Point, Sweep

FACTORS = (1 / 4, 1, 4)
# Fields, and the middle rate in units of config.zo.lr.
CASES: dict[str, tuple[dict[str, Any], float]] = {
    "All parameters": ({}, 1),
    "All but the last layer": ({"zo.params": "!head/*"}, 1),
    "A hundredth of the coordinates": ({"zo.density": 0.01}, 16),
    "Norms": ({"zo.params": "*norm*"}, 4),
    "Norms and last layer": ({"zo.params": "*norm*,head/*"}, 4),
    "Last layer": ({"zo.params": "head/*"}, 4),
}


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns a row a choice of parameters that the model has, a column a rate; and the warm-up."""
    points = [
        Point(
            row,
            f"x {factor:g}",
            {"algorithm": "zowarmup", **fields, "zo.lr": config.zo.lr * center * factor},
        )
        for row, (fields, center) in CASES.items()
        for factor in FACTORS
        if config.model.norm != "none" or "norm" not in fields.get("zo.params", "")
    ]
    points.append(Point(sweeps.HIGH_RES_ONLY, "x 1", {"algorithm": "fedavg"}))
    return Sweep("Where scalars do most", "", points, quantity="validation")
