"""Figure 7: the variance of the final accuracy over seeds against S, the number of directions.

Expect it to fall with S (the paper, 3 seeds: 9.0, 6.6 and 1.45 points squared at S = 1, 3 and 9).
A variance of three seeds is itself uncertain by a factor of several: use more.

    python -m experiments.sweep --config=configs/cifar10_10_90.py \
        --sweep=configs/sweeps/num_directions.py --seeds=5 --workdir=R
"""

from ml_collections import ConfigDict

from zo_fl.config import sweeps
from zo_fl.config.sweeps import Point, Sweep


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns one row, a column a number of directions."""
    del config  # nothing here scales with it
    points = [
        Point(sweeps.ZOWARMUP, f"S = {n}", {"algorithm": "zowarmup", "zo.num_directions": n})
        for n in (1, 3, 9)
    ]
    return Sweep("Number of directions", "Figure 7", points)
