"""The rates of ``head_scalars``: each of its rows on one grid, by validation accuracy.

Thirteen rates, four to a factor of ten, on five seeds that the comparison does not use.

    python -m experiments.sweep --config=configs/quickstart.py \
        --sweep=configs/sweeps/head_scalars_rates.py --first_seed=100 --seeds=5 --workdir=R
"""

from ml_collections import ConfigDict

from zo_fl import config as configs
from zo_fl.config.sweeps import Point, Sweep

RATES = (0.01, 0.018, 0.03, 0.06, 0.1, 0.18, 0.3, 0.6, 1.0, 1.8, 3.0, 6.0, 10.0)


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns a row for each that has a rate, a column a rate."""
    del config
    compared = configs.find("head_scalars", "sweep", "sweeps")
    points = []
    for row, fields in configs.call(compared, "with_rates").items():
        (name,) = [field for field in fields if field.endswith(".lr")]
        points += [Point(row, f"{rate:g}", fields | {name: rate}) for rate in RATES]
    return Sweep("Rates for the last layer", "", points, quantity="validation")
