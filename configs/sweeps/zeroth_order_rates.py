"""The rates of ``zeroth_order``: each variant on a grid of its own, by validation accuracy.

Five rates a variant and start, a factor of four apart, in half as many rounds, on seeds that the
comparison does not use: three, because one seed's 260 validation examples tell 3 points apart at
best.

    python -m experiments.sweep --config=configs/quickstart.py --config.model.name=mlp \
        --config.model.norm=none --config.zo.num_rounds=20 --config.head_zo.num_rounds=20 \
        --sweep=configs/sweeps/zeroth_order_rates.py --first_seed=100 --seeds=3 --workdir=R
"""

from ml_collections import ConfigDict

from zo_fl import config as configs
from zo_fl.config.sweeps import Point, Sweep

FACTORS = (1 / 16, 1 / 4, 1, 4, 16)
# In units of config.zo.lr: fewer dimensions bear larger rates, momentum of 0.9 a tenth.
CENTERS = {
    "Momentum": 0.1,
    "Last layer": 4.0,
    "Norms and last layer": 4.0,
    "A hundredth of the coordinates": 16.0,
}
# How far a round moves the model; in whitened coordinates.
OWN = {"Steps of a fixed length": 0.1, "Last layer, whitened": 0.1}


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns a row a variant and start, a column a rate."""
    points, compared = [], configs.find("zeroth_order", "sweep", "sweeps")
    for (start, row), fields in configs.call(compared, "cases").items():
        name = configs.call(compared, "rate_of", fields)
        # Logits that fit have larger gradients of the head: a tenth.
        unit = config.zo.lr * (1.0 if start == "warm-up" else 0.1)
        center = OWN.get(row, CENTERS.get(row, 1.0) * unit)
        points += [
            Point(f"{row}, from {start}", f"x {factor:g}", fields | {name: center * factor})
            for factor in FACTORS
        ]
    return Sweep("Rates of zeroth-order rounds", "", points, quantity="validation")
