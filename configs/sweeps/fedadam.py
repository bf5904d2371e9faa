"""Table 4: FedAdam in both phases, with GroupNorm.

Expect less than with FedAvg, and ZOWarmUp above High Res Only (the paper, CIFAR-10, 10/90: 36.9 to
46.4 %). The paper does not report its learning rates: the warm-up's server rate 1e-3 is the best of
its author's public code, the second phase's is computed below; neither is tuned.

    python -m experiments.sweep --config=configs/cifar10_10_90.py \
        --sweep=configs/sweeps/fedadam.py --seeds=5 --workdir=R
"""

import math

from ml_collections import ConfigDict

from zo_fl.config import sweeps
from zo_fl.config.sweeps import Point, Sweep


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns both methods at the config's split."""
    adam = {
        "model.norm": "group",
        "warmup.server": "adam",
        "warmup.server_lr": 1e-3,
        "zo.server": "adam",
        "zo.lr": _adam_lr(config),
    }
    column = sweeps.split_name(config.data.high_fraction)
    points = [
        Point(sweeps.HIGH_RES_ONLY, column, {"algorithm": "fedavg", **adam}),
        Point(sweeps.ZOWARMUP, column, {"algorithm": "zowarmup", **adam}),
    ]
    return Sweep("FedAdam in both phases", "Table 4", points, reference=sweeps.HIGH_RES_ONLY)


def _adam_lr(config: ConfigDict) -> float:
    """Returns the rate at which an update of Adam has the norm of the config's own update.

    Adam's is lr * sqrt(d); SGD's lr * tau^2 * |grad| * sqrt(d / (S * cohort)), with |grad| = 1.
    """
    zo = config.zo
    cohort = config.data.num_clients if zo.cohort_size == "all" else zo.cohort_size
    probes = zo.num_directions * cohort
    return float(f"{zo.lr * zo.tau**2 / math.sqrt(probes):.0e}")
