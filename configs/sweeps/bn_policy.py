"""Not in the paper: what a pass without a gradient does with batch statistics.

Each ``zo.bn_policy`` with the config's learning rate and with none. What the column lr = 0 gains
over the pivot comes from the statistics alone; the rest is the zeroth-order updates'.

    python -m experiments.sweep --config=configs/cifar10_10_90.py \
        --sweep=configs/sweeps/bn_policy.py --seeds=5 --workdir=R
"""

from ml_collections import ConfigDict

from zo_fl.config.sweeps import Point, Sweep
from zo_fl.engine.statistics import POLICIES


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns a row a policy, a column a learning rate; always with BatchNorm."""
    points = [
        Point(
            name,
            f"lr = {lr:g}",
            {
                "algorithm": "zowarmup",
                "model.norm": "batch",
                "zo.bn_policy": name,
                "zo.lr": lr,
            },
        )
        for name in POLICIES
        for lr in (config.zo.lr, 0.0)
    ]
    return Sweep("Batch statistics after the pivot", "", points, reference="frozen")
