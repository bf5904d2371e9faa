"""Table 5: a vision transformer (width 512, depth 6, patch 4) instead of ResNet18.

Expect ZOWarmUp above High Res Only (the paper, CIFAR-10, 10/90: 37.8 to 42.9 %). It has no
BatchNorm, so the gain is none of batch statistics. 19 million parameters: for a GPU or TPU.

    python -m experiments.sweep --config=configs/cifar10_10_90.py --sweep=configs/sweeps/vit.py \
        --seeds=5 --workdir=R
"""

from ml_collections import ConfigDict

from zo_fl.config import sweeps
from zo_fl.config.sweeps import Point, Sweep


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns both methods at the config's split."""
    vit = {"model.name": "vit", "model.norm": "layer"}
    column = sweeps.split_name(config.data.high_fraction)
    points = [
        Point(sweeps.HIGH_RES_ONLY, column, {"algorithm": "fedavg", **vit}),
        Point(sweeps.ZOWARMUP, column, {"algorithm": "zowarmup", **vit}),
    ]
    return Sweep("Vision transformer", "Table 5", points, reference=sweeps.HIGH_RES_ONLY)
