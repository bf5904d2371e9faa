"""Phase two: each thing that may make scalars worth their passes, alone, against the paper's.

From a warm-up, and from the head that everyone's sums give after it (ridge). Beside the controls:
as many more rounds of warm-up, and a rate of zero. All send the same scalars, and take the same
forward passes a round, but for the whitened last layer, which takes a sixth of them. Rates are to
be those of the best validation accuracy in ``zeroth_order_rates``, on other seeds, from grids of
equal size. That sweep has not been run yet: until ``RATES`` is filled from it, every variant has
the config's own rate, and this comparison says nothing. Expect what moves fewer coordinates to gain
most.

    python -m experiments.sweep --config=configs/quickstart.py \
        --sweep=configs/sweeps/zeroth_order.py --seeds=10 --workdir=R
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
    "Momentum": {"zo.server.name": "momentum"},
    "Steps of a fixed length": {"zo.server.scale": "norm"},
    "Trust ratios": {"zo.server.scale": "trust"},
    "Last layer": {"zo.params": "head/*"},
    "Last layer, whitened": {"algorithm": "fedavg+head_zo"},
    "Norms and last layer": {"zo.params": "*norm*,head/*"},
    "A hundredth of the coordinates": {"zo.density": 0.01},
}
FROM_RIDGE = ("As printed", "Last layer", "A hundredth of the coordinates")

# (start, variant) -> rate, from zeroth_order_rates; the config's own for what is not there.
RATES: dict[tuple[str, str], float] = {}


def rate_of(fields: dict[str, Any]) -> str:
    """Returns the name of a variant's rate."""
    return "head_zo.lr" if "head_zo" in fields["algorithm"] else "zo.lr"


def cases() -> dict[tuple[str, str], dict[str, Any]]:
    """Returns start and variant -> its fields."""
    return {
        (start, row): {"algorithm": f"{algorithm}+zo", **RIDGE, **fields}
        for start, algorithm in STARTS.items()
        for row, fields in VARIANTS.items()
        if start == "warm-up" or row in FROM_RIDGE
    }


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns a column a start."""
    total, points = sweeps.total_rounds(config), []
    for (start, row), fields in cases().items():
        rate = {rate_of(fields): RATES[start, row]} if (start, row) in RATES else {}
        points.append(Point(row, start, fields | rate))
    for start, algorithm in STARTS.items():
        still = {"algorithm": f"{algorithm}+zo", **RIDGE, "zo.lr": 0.0}
        points.append(Point("Rate zero", start, still))
        longer = {"algorithm": algorithm, **RIDGE, "warmup.num_rounds": total}
        points.append(Point("As many more warm-up rounds", start, longer))
    return Sweep("Zeroth-order rounds, one change at a time", "", points, reference="Rate zero")
