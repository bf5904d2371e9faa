"""Table 7: after the pivot, should high-resource clients go on with gradients?

Expect no: all clients zeroth-order is better (the paper, CIFAR-10: 48.8 to 51.1 % at 10/90, 76.2 to
78.2 % at 50/50, 81.8 to 83.0 % at 90/10).

    python -m experiments.sweep --config=configs/cifar10_10_90.py \
        --sweep=configs/sweeps/mixed_tiers.py --seeds=5 --workdir=R
"""

from ml_collections import ConfigDict

from zo_fl.config import sweeps
from zo_fl.config.sweeps import Point, Sweep

FIRST_ORDER = "High tier first-order"


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns both methods at three splits."""
    del config  # nothing here scales with it
    methods = {FIRST_ORDER: "fedavg+mixed_tiers", sweeps.ZOWARMUP: "zowarmup"}
    points = [
        Point(row, sweeps.split_name(share), {"algorithm": name, "data.high_fraction": share})
        for row, name in methods.items()
        for share in (0.1, 0.5, 0.9)
    ]
    return Sweep("First-order clients after the pivot", "Table 7", points, reference=FIRST_ORDER)
