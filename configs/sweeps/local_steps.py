"""Table 3: more zeroth-order steps a round, on equal chunks of a client's data.

tau falls with the number of steps as in the paper. At an equal rate that is mostly a sweep of step
sizes: update norms are 1 : 1/6.4 : 1/28 : 1/2300. So each row comes twice, at the config's rate, as
the paper prints it, and at the rate that gives the update the norm of one step ("equal norm").
Expect one step to be best at an equal rate (the paper, 10/90: 54.3 % with one, 42.2 % with six).

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
    points, equal_norm = [], []
    (first_steps, first_tau), *_ = STEPS_AND_TAU
    for steps, tau in STEPS_AND_TAU:
        row = f"{steps} step{'s' * (steps > 1)}, tau {tau}"
        fields = {"algorithm": "zowarmup", "zo.local_steps": steps, "zo.tau": tau}
        points.append(Point(row, column, fields))
        rate = sweeps.rate_of_equal_norm(config.zo.lr, (first_tau, tau), (first_steps, steps))
        equal_norm.append(Point(f"{row}, equal norm", column, fields | {"zo.lr": rate}))
    title = "Zeroth-order steps a round, at an equal rate and at an equal update norm"
    return Sweep(title, "Table 3", points + equal_norm[1:], points[0].row)
