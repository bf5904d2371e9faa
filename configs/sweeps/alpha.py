"""Not in the paper: label skew, from nearly one class a client to almost even.

Expect both methods to rise with alpha, and their difference to shrink.

    python -m experiments.sweep --config=configs/cifar10_10_90.py --sweep=configs/sweeps/alpha.py \
        --seeds=5 --workdir=R
"""

from ml_collections import ConfigDict

from zo_fl.config import sweeps
from zo_fl.config.sweeps import Point, Sweep


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns both methods at five values of alpha."""
    del config  # nothing here scales with it
    methods = {sweeps.HIGH_RES_ONLY: "fedavg", sweeps.ZOWARMUP: "zowarmup"}
    points = [
        Point(
            row,
            f"alpha {alpha:g}",
            {"algorithm": name, "data.partition": "dirichlet", "data.alpha": alpha},
        )
        for row, name in methods.items()
        for alpha in (0.05, 0.1, 0.3, 1.0, 10.0)
    ]
    return Sweep("Label skew", "", points, reference=sweeps.HIGH_RES_ONLY)
