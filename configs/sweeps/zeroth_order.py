"""Phase two: each thing that may make scalars worth their passes, alone, against the paper's.

From a warm-up, and from the head that everyone's sums give after it (ridge). Beside the controls:
as many more rounds of warm-up, and a rate of zero. All send the same scalars, and take the same
forward passes a round, but for the whitened last layer, which takes a sixth of them. Four more
rows (orthogonal directions, a layer at a time, trust ratios, the combination of the best of each
kind) brought nothing and are gone; commit 4ea9af5 can repeat them. Rates are those of the best
validation accuracy in ``zeroth_order_rates``, on other seeds, from grids of equal size, for an MLP
on the quickstart's clients. Expect what moves fewer coordinates to gain most.

    python -m experiments.sweep --config=configs/quickstart.py --config.model.name=mlp \
        --config.model.norm=none --sweep=configs/sweeps/zeroth_order.py --seeds=10 --workdir=R
"""

from typing import Any

from ml_collections import ConfigDict

from zo_fl.config import sweeps
from zo_fl.config.sweeps import Point, Sweep

# Few examples want larger penalties than whole data sets.
RIDGE = {"ridge.penalties": (1e-2, 3e-2, 1e-1, 3e-1, 1.0)}
STARTS = {"warm-up": "fedavg", "ridge": "fedavg+ridge"}

VARIANTS: dict[str, dict[str, Any]] = {
    "As printed": {},
    "Exact derivatives": {"zo.estimator": "jvp"},
    "Directions of rank one": {"zo.distribution": "low_rank"},
    "Momentum": {"zo.server": "momentum"},
    "Steps of a fixed length": {"zo.server": "normalized"},
    "Last layer": {"zo.params": "head/*"},
    "Last layer, whitened": {
        "algorithm": "head_zo",
        "head_zo.num_directions": 3,
        "head_zo.cache": False,
    },
    "Norms and last layer": {"zo.params": "*norm*,head/*"},
    "A hundredth of the coordinates": {"zo.density": 0.01},
}

# (start, variant) -> rate, from zeroth_order_rates (its table: docs/results/notes_on_performance).
RATES: dict[tuple[str, str], float] = {
    ("warm-up", "As printed"): 0.0025,
    ("warm-up", "Exact derivatives"): 0.0025,
    ("warm-up", "Directions of rank one"): 0.0025,
    ("warm-up", "Momentum"): 0.00025,
    ("warm-up", "Steps of a fixed length"): 1.6,
    ("warm-up", "Last layer"): 0.01,
    ("warm-up", "Last layer, whitened"): 0.4,
    ("warm-up", "Norms and last layer"): 0.01,
    ("warm-up", "A hundredth of the coordinates"): 0.16,
    ("ridge", "As printed"): 6.25e-5,
    ("ridge", "Exact derivatives"): 6.25e-5,
    ("ridge", "Directions of rank one"): 6.25e-5,
    ("ridge", "Momentum"): 6.25e-6,
    ("ridge", "Steps of a fixed length"): 0.00625,
    ("ridge", "Last layer"): 0.00025,
    ("ridge", "Last layer, whitened"): 0.00625,
    ("ridge", "Norms and last layer"): 0.00025,
    ("ridge", "A hundredth of the coordinates"): 0.064,
}


def rate_of(fields: dict[str, Any]) -> str:
    """Returns the name of a variant's rate: that of its last part."""
    return f"{fields['algorithm'].split('+')[-1]}.lr"


def cases() -> dict[tuple[str, str], dict[str, Any]]:
    """Returns start and variant -> its fields, the rate of a last part apart."""
    found = {}
    for start, algorithm in STARTS.items():
        for row, changes in VARIANTS.items():
            fields = RIDGE | changes
            if "algorithm" in fields and start == "ridge":
                fields["head_zo.fresh"] = False  # but go on from ridge's
            fields["algorithm"] = f"{algorithm}+{fields.get('algorithm', 'zo')}"
            found[start, row] = fields
    return found


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns a column a start."""
    total, points = sweeps.total_rounds(config), []
    for (start, row), fields in cases().items():
        points.append(Point(row, start, fields | {rate_of(fields): RATES[start, row]}))
    for start, algorithm in STARTS.items():
        still = {"algorithm": f"{algorithm}+zo", **RIDGE, "zo.lr": 0.0}
        points.append(Point("Rate zero", start, still))
        longer = {"algorithm": algorithm, **RIDGE, "warmup.num_rounds": total}
        points.append(Point("As many more warm-up rounds", start, longer))
    return Sweep("Zeroth-order rounds, one change at a time", "", points, reference="Rate zero")
