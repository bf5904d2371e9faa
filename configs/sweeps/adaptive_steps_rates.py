"""The rates of ``adaptive_steps``: six an optimizer, by validation accuracy.

A factor of four apart, in half as many rounds, on three seeds that the comparison does not use. An
adaptive step is about as long as the rate in each coordinate; the middle of its grid is where a
round moves the model as far as one of SGD in the middle of its own.

    python -m experiments.sweep --config=configs/quickstart.py --config.model.name=mlp \
        --config.model.norm=none --config.zo.num_rounds=20 \
        --sweep=configs/sweeps/adaptive_steps_rates.py --first_seed=100 --seeds=3 --workdir=R
"""

from ml_collections import ConfigDict

from zo_fl import config as configs
from zo_fl.config.sweeps import Point, Sweep

FACTORS = (1 / 64, 1 / 16, 1 / 4, 1, 4, 16)
MIDDLES = {"sgd": 0.01, "momentum": 0.001}
_ADAPTIVE = 1e-3


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns a row an optimizer, a column a rate."""
    del config
    rows = configs.call(configs.find("adaptive_steps", "sweep", "sweeps"), "get_rows")
    points = [
        Point(
            row,
            f"x {factor:g}",
            {
                "algorithm": "zowarmup",
                "zo.server": name,
                "zo.lr": MIDDLES.get(name, _ADAPTIVE) * factor,
            },
        )
        for row, name in rows.items()
        for factor in FACTORS
    ]
    return Sweep("Rates of adaptive steps", "", points, quantity="validation")
