"""Accuracy against epsilon of an example, of scalars and of closed-form sums after a warm-up.

Warm-up rounds promise nothing: this is what the phase after them costs. Bounds are the config's or,
where that has none, about the medians of what single examples contribute on the quickstart: of loss
differences at its eps and tau, and of the lengths of its features. Scalars are read singly and have
all of the noise, in every round; sums are sent once, and each client adds its share. Noise in sums
asks for a larger penalty: with that of no noise, ridge would lose to scalars below epsilon 4.
Expect sums to gain more at each epsilon.

    python -m experiments.sweep --config=configs/quickstart.py \
        --sweep=configs/sweeps/privacy.py --seeds=5 --workdir=R
"""

import math

from ml_collections import ConfigDict

from zo_fl.config.sweeps import Point, Sweep

# epsilon at delta = 1e-5 -> noise of one release; that of many is the root of their number larger.
NOISE = {0.5: 7.032, 1: 3.731, 2: 1.994, 4: 1.081, 8: 0.6, 16: 0.344}
BOUNDS = {"zo": 0.015, "ridge": 5.0}
# Of 0.1, 1 and 10 what three other seeds' validation examples chose at 0.5, 2 and 8, with the MLP.
PENALTIES = {0.5: 10.0, 1: 10.0, 2: 10.0, 4: 1.0, 8: 1.0, 16: 1.0}


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns a column an epsilon, and one without noise; a row for scalars and one for sums."""
    ridge = {"ridge.penalties": (0.1,), "ridge.calibrate": False}
    rows = {
        "ZOWarmUp": ("zo", {"algorithm": "zowarmup"}, config.zo.num_rounds),
        "Warm-up, ridge": ("ridge", {"algorithm": "fedavg+ridge", **ridge}, 1),
    }
    points = []
    for row, (block, fields, times) in rows.items():
        bound = config[block].bound
        bounded = fields | {f"{block}.bound": BOUNDS[block] if bound == "none" else bound}
        unbounded = fields | {f"{block}.bound": "none"}
        points += [Point(row, "no bound", unbounded), Point(row, "no noise", bounded)]
        for epsilon, noise in NOISE.items():
            noisy = bounded | {f"{block}.noise": round(noise * math.sqrt(times), 4)}
            if block == "ridge":
                noisy["ridge.penalties"] = (PENALTIES[epsilon],)
            points.append(Point(row, f"epsilon {epsilon:g}", noisy))
    points.append(Point("Warm-up alone", "no bound", {"algorithm": "fedavg"}))
    return Sweep("What privacy of an example costs", "", points, axis="epsilon at delta = 1e-5")
