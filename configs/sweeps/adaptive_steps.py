"""Does Adam bear the noise of scalars? (The paper's second open question: its Adam fails there.)

Phase two from a warm-up, by each optimizer of the server at the rate of the best validation
accuracy in ``adaptive_steps_rates``: other seeds, a grid of equal size for each. Expect nothing
beyond the spread: with 60 scalars in d coordinates a second moment measures noise that is alike in
all coordinates, so that Adam is SGD with a step that shrinks as the gradient grows.

    python -m experiments.sweep --config=configs/quickstart.py --config.model.name=mlp \
        --config.model.norm=none --sweep=configs/sweeps/adaptive_steps.py --seeds=10 --workdir=R
"""

from ml_collections import ConfigDict

from zo_fl.config.sweeps import Point, Sweep

ROWS = {
    "SGD": "sgd",
    "Momentum": "momentum",
    "Adam": "adam",
    "Yogi": "yogi",
    "Adam, second moment of the momentum": "adam_of_momentum",
    "Adam, one second moment": "adam_of_one_scalar",
}
# From adaptive_steps_rates; its table: docs/results/variants.
RATES = {
    "SGD": 0.0025,
    "Momentum": 0.00025,
    "Adam": 1e-3,
    "Yogi": 1e-3,
    "Adam, second moment of the momentum": 2.5e-4,
    "Adam, one second moment": 4e-3,
}


def get_rows() -> dict[str, str]:
    """Returns row -> optimizer of the server."""
    return ROWS


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns a row an optimizer."""
    del config
    points = [
        Point(row, "warm-up", {"algorithm": "zowarmup", "zo.server": ROWS[row], "zo.lr": rate})
        for row, rate in RATES.items()
    ]
    points.append(Point("Rate zero", "warm-up", {"algorithm": "zowarmup", "zo.lr": 0.0}))
    return Sweep("Adaptive steps of phase two", "", points, reference="Rate zero")
