"""Figure 4: where to put the pivot, at a constant number of rounds.

Pivots at 25, 50, 100, 200, 300 and 400 of the paper's 500 rounds, or the same shares of another
total. Expect a broad maximum: at 200 for 10/90 (54 %), at 300 for 50/50 (79 %).

    python -m experiments.sweep --config=configs/cifar10_10_90.py --sweep=configs/sweeps/pivot.py \
        --seeds=3 --workdir=R

The shorter warm-ups are the beginnings of the longest: together they cost no more than that one.
In two more columns the warm-up ends by itself, at most where the longest does, and the zeroth-order
rounds take what is left: where what the high tier, or everyone, gets right of its validation
examples stops rising. Expect both within a point of the best column (docs/results).
"""

from ml_collections import ConfigDict

from zo_fl.config import sweeps
from zo_fl.config.sweeps import Point, Sweep

SHARES = (25 / 500, 50 / 500, 100 / 500, 200 / 500, 300 / 500, 400 / 500)


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns one row, the config's split; a column a pivot."""
    row, total = sweeps.split_name(config.data.high_fraction), sweeps.total_rounds(config)
    points = {}
    for share in SHARES:
        overrides = {"algorithm": "zowarmup", **sweeps.pivot_at(config, share)}
        # By column: two shares of a small total may be the same round.
        column = f"{overrides['warmup.num_rounds']} of {total}"
        points[column] = Point(row, column, overrides)
    longest = sweeps.pivot_at(config, SHARES[-1])
    for stop in ("plateau", "population"):
        overrides = {"algorithm": "zowarmup", **longest, "warmup.stop": stop}
        column = f"by itself, {stop}"
        points[column] = Point(row, column, overrides | {"warmup.hand_over": True})
    return Sweep("The pivot's round", "Figure 4", list(points.values()))
