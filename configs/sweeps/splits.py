"""Table 2, the rows High Res Only and ZOWarmUp; the curves of Figure 3.

Five splits. Expect ZOWarmUp above High Res Only at each, most at 10/90 (the paper, CIFAR-10: +10,
+7, +7, +4 and +3 points). High Res Only is the warm-up alone, so it costs nothing extra.

    python -m experiments.sweep --config=configs/cifar10_10_90.py --sweep=configs/sweeps/splits.py \
        --seeds=5 --workdir=R
"""

from ml_collections import ConfigDict

from configs.sweeps import common
from configs.sweeps.common import Point, Sweep


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns both methods at the five splits."""
    del config  # nothing here scales with it
    methods = {common.HIGH_RES_ONLY: "fedavg", common.ZOWARMUP: "zowarmup"}
    points = [
        Point(row, common.split_name(share), {"algorithm": name, "data.high_fraction": share})
        for row, name in methods.items()
        for share in common.SPLITS
    ]
    return Sweep("Splits of the clients", "Table 2", points, reference=common.HIGH_RES_ONLY)
