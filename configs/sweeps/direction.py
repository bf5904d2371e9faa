"""Figure 6 and Table 6: Rademacher against Gaussian directions, at four scales tau.

The pivot is early, at 75 of 500 rounds, as in Figure 6. The paper reports 12 seeds and a large gap
for Rademacher (Table 6), but its warm-ups differed between the two; here they are the same, and
theory expects no measurable gap. Expect a larger tau to be better up to 0.75.

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
    points = [
        Point(name.capitalize(), f"tau {tau}", base | {"zo.distribution": name, "zo.tau": tau})
        for name in ("gaussian", "rademacher")
        for tau in TAUS
    ]
    return Sweep("Distribution and scale of the directions", "Figure 6", points, "Gaussian")
