"""Figure 5: FedKSeed after a warm-up, with its 200 local steps against a single one.

The paper shows it for a language model (Rouge-L 0.172 with 200 steps, 0.202 with one); here it is
image classification. Expect one step to be better there too.

    python -m experiments.sweep --config=configs/cifar10_10_90.py \
        --sweep=configs/sweeps/local_steps_fedkseed.py --seeds=5 --workdir=R
"""

from ml_collections import ConfigDict

from zo_fl.config import sweeps
from zo_fl.config.sweeps import Point, Sweep


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns a row a number of steps, one column: the config's split."""
    column = sweeps.split_name(config.data.high_fraction)
    points = [
        Point(
            f"{steps} local step{'s' * (steps > 1)}",
            column,
            {
                "algorithm": "fedavg+fedkseed",
                "fedkseed.num_rounds": config.zo.num_rounds,
                "fedkseed.local_steps": steps,
            },
        )
        for steps in (200, 1)
    ]
    return Sweep("Local steps of FedKSeed", "Figure 5", points, reference=points[0].row)
