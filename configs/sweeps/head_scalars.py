"""Scalars for the last layer: what each part of ``head_zo`` brings, beside what else it could send.

All start from the same warm-up of the high tier, and a low-resource client passes over its examples
once a round, or, where it keeps its features, once in all. Rates are those of the best validation
accuracy on seeds 100 to 104 (``head_scalars_rates``). Expect a loss that spares absent classes to
help, four times the scalars to help more, and class means and ridge to stay ahead of what scalars
reach.

    python -m experiments.sweep --config=configs/quickstart.py \
        --sweep=configs/sweeps/head_scalars.py --seeds=5 --workdir=R
    python -m experiments.pareto --runs=R
"""

from typing import Any

from ml_collections import ConfigDict

from zo_fl.config import sweeps
from zo_fl.config.sweeps import Point, Sweep

# Few examples want larger penalties than whole data sets.
RIDGE = {"ridge.penalties": (1e-2, 3e-2, 1e-1, 3e-1, 1.0)}
ALONE = "Warm-up alone"


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns one column: the split of the config."""
    rows: dict[str, dict[str, Any]] = {
        ALONE: {"algorithm": "fedavg"},
        **with_rates(),
        "Class means, 32 directions, int8": {
            "algorithm": "fedavg+gaussian_head",
            "gaussian_head.sketch": 32,
            "gaussian_head.encoding": "int8",
            "gaussian_head.calibrate": False,
        },
        "Ridge": {"algorithm": "fedavg+ridge", "ridge.calibrate": False, **RIDGE},
    }
    column = sweeps.split_name(config.data.high_fraction)
    points = [Point(row, column, fields) for row, fields in rows.items()]
    return Sweep("Scalars for the last layer", "", points, reference=ALONE)


def with_rates() -> dict[str, dict[str, Any]]:
    """Returns the overrides of the rows that have a rate."""
    scalars = {"algorithm": "fedavg+head_zo", "head_zo.cache": True, "head_zo.num_directions": 3}
    return {
        "3 scalars a round": scalars | {"head_zo.lr": 1.8},
        "3 scalars, cross-entropy": scalars | {"head_zo.loss": "ce", "head_zo.lr": 0.18},
        "3 scalars, 8 directions": scalars | {"head_zo.sketch": 8, "head_zo.lr": 3.0},
        "12 scalars a round": scalars | {"head_zo.num_directions": 12, "head_zo.lr": 3.0},
        "Gradient of the head": {
            "algorithm": "fedavg+head_sgd",
            "head_sgd.cache": True,
            "head_sgd.lr": 0.6,
        },
    }
