"""Forward passes only, at the paper's five splits: some rows of ``forward_only``.

Everyone's sums against those of the high tier alone. Expect everyone's to be the same at all
splits, as ridge's are whoever holds the examples and the kernels differ little; and the high tier
alone to come near only where it holds most of them.

    python -m experiments.sweep --config=configs/cifar10_10_90_forward.py \
        --sweep=configs/sweeps/forward_splits.py --seeds=5 --workdir=R
"""

from ml_collections import ConfigDict

from zo_fl import config as configs
from zo_fl.config import sweeps
from zo_fl.config.sweeps import Point, Sweep


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns a column a split."""
    whole = configs.call(configs.find("forward_only", "sweep", "sweeps"), "get_sweep", config)
    kept = [point for point in whole.points if point.row.endswith(("directions, int8", "features"))]
    points = [
        Point(point.row, sweeps.split_name(share), point.overrides | {"data.high_fraction": share})
        for share in sweeps.SPLITS
        for point in kept
    ]
    return Sweep("Forward passes only, by split", "", points, reference=whole.reference)
