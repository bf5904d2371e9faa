"""Table 2, the rows High Res Only and ZOWarmUp; the curves of Figure 3.

Five splits. Expect ZOWarmUp above High Res Only at each, most at 10/90 (the paper, CIFAR-10: +10,
+7, +7, +4 and +3 points). High Res Only is the warm-up alone, so it costs nothing extra.

    python -m experiments.sweep --config=configs/cifar10_10_90.py --sweep=configs/sweeps/splits.py \
        --seeds=5 --workdir=R
"""

from ml_collections import ConfigDict

from zo_fl.config import sweeps
from zo_fl.config.sweeps import Point, Sweep


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns both methods at the five splits."""
    del config  # nothing here scales with it
    methods = {sweeps.HIGH_RES_ONLY: "fedavg", sweeps.ZOWARMUP: "zowarmup"}
    points = [
        Point(row, sweeps.split_name(share), {"algorithm": name, "data.high_fraction": share})
        for row, name in methods.items()
        for share in sweeps.SPLITS
    ]
    return Sweep("Splits of the clients", "Table 2", points, reference=sweeps.HIGH_RES_ONLY)
