"""Figure 6 and Table 6: Rademacher against Gaussian directions, at four scales tau.

The pivot is early, at 75 of 500 rounds, as in Figure 6. The paper reports 12 seeds and a large gap
for Rademacher (Table 6), but its warm-ups differed between the two; here they are the same, and
theory expects no measurable gap. At an equal rate tau is mostly a step size (the update's norm goes
with its square), and a larger one is expected to be better up to 0.75; so each row comes twice, at
the config's rate, as the paper prints it, and with the norm that tau = 0.75 has ("equal norm").

    python -m experiments.sweep --config=configs/cifar10_10_90.py \
        --sweep=configs/sweeps/direction.py --seeds=12 --workdir=R
"""

from ml_collections import ConfigDict

from zo_fl.config import sweeps
from zo_fl.config.sweeps import Point, Sweep

TAUS = (0.1, 0.25, 0.5, 0.75)


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns a row a distribution, a column a tau."""
    base = {"algorithm": "zowarmup", **sweeps.pivot_at(config, 75 / 500)}
    points, equal_norm = [], []
    for name in ("gaussian", "rademacher"):
        for tau in TAUS:
            row, column = name.capitalize(), f"tau {tau}"
            fields = base | {"zo.distribution": name, "zo.tau": tau}
            points.append(Point(row, column, fields))
            rate = sweeps.rate_of_equal_norm(config.zo.lr, (TAUS[-1], tau))
            equal_norm.append(Point(f"{row}, equal norm", column, fields | {"zo.lr": rate}))
    title = "Distribution and scale of the directions, at an equal rate and at an equal update norm"
    return Sweep(title, "Figure 6", points + equal_norm, "Gaussian")
