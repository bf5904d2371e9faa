"""Two kinds of features by forward passes, at three sizes; no pixel is sent.

Expect accuracy to rise with the kernels of the network more than with those of the first layer,
and time with both.

    python -m experiments.sweep --config=configs/cifar10_10_90_kernels.py \
        --sweep=configs/sweeps/kernels.py --seeds=5 --workdir=R
"""

from ml_collections import ConfigDict

from zo_fl.config import sweeps
from zo_fl.config.sweeps import Point, Sweep


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns one column: the numbers of kernels of the config, and fractions of them.

    A config without a network is given 4,096 kernels of one.
    """
    most, given = config.model.kernels, config.model.network
    network = 4096 if given in ("none", 0) else given
    small, medium = max(most // 4, 1), max(5 * most // 13, 1)
    sizes = ((small, max(network // 4, 1)), (medium, max(network // 2, 1)), (most, network))
    points = [
        Point(
            f"{first:,} kernels, and a network of {second:,}",
            sweeps.split_name(config.data.high_fraction),
            {"model.kernels": first, "model.network": second},
        )
        for first, second in sizes
    ]
    return Sweep("Two kinds of features", "", points)
