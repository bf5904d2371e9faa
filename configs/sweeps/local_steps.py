"""Table 3: more zeroth-order steps a round, on equal chunks of a client's data.

tau falls with the number of steps as in the paper. Expect one step to be best (the paper, 10/90:
54.3 % with one, 42.2 % with six).

    python -m experiments.sweep --config=configs/cifar10_10_90.py \
        --sweep=configs/sweeps/local_steps.py --seeds=5 --workdir=R
"""

from ml_collections import ConfigDict

from zo_fl.config import sweeps
from zo_fl.config.sweeps import Point, Sweep

# The paper prints 0, 1, 4 and 6 steps; their batch sizes (900, 450, 225, 150) say 1, 2, 4 and 6.
STEPS_AND_TAU = ((1, 0.75), (2, 0.25), (4, 0.1), (6, 0.01))


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns a row a number of steps, one column: the config's split."""
    column = sweeps.split_name(config.data.high_fraction)
    points = [
        Point(
            f"{steps} step{'s' * (steps > 1)}, tau {tau}",
            column,
            {"algorithm": "zowarmup", "zo.local_steps": steps, "zo.tau": tau},
        )
        for steps, tau in STEPS_AND_TAU
    ]
    return Sweep("Zeroth-order steps a round", "Table 3", points, points[0].row)
