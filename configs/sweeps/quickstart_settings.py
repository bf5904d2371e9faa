"""The quickstart's settings, by the validation clients' accuracy alone.

Warm-ups that differ, then scalars for the whitened last layer: how many a round, along how many
principal directions, at which rate. Three seeds that no result uses.

    python -m experiments.sweep --config=configs/quickstart.py \
        --sweep=configs/sweeps/quickstart_settings.py --first_seed=100 --seeds=3 --workdir=R
    python -m experiments.tables --runs=R
"""

from typing import Any

from ml_collections import ConfigDict

from zo_fl.config.sweeps import Point, Sweep

RATES = (1.8, 3.0, 6.0, 10.0, 18.0)
BASE: dict[str, Any] = {
    "algorithm": "fedavg+head_zo",
    "head_zo.cache": True,
    "head_zo.num_directions": 24,
}
# By what they change of BASE.
ROWS: dict[str, dict[str, Any]] = {
    "24 scalars a round": {},
    "12 scalars": {"head_zo.num_directions": 12},
    "48 scalars": {"head_zo.num_directions": 48},
    "all principal directions": {"head_zo.sketch": 64},
    "20 rounds of warm-up": {"warmup.num_rounds": 20},
    "60 rounds of warm-up": {"warmup.num_rounds": 60},
    "warm-up at 0.02": {"warmup.lr": 0.02},
    "warm-up with crops and flips": {"warmup.augment": True},
    "warm-up of twice the channels": {"model.width": 2.0},
}


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns a row a setting, a column a rate."""
    del config
    points = [
        Point(row, f"{rate:g}", BASE | changes | {"head_zo.lr": rate})
        for row, changes in ROWS.items()
        for rate in RATES
    ]
    return Sweep("The quickstart's settings", "", points, quantity="validation")
