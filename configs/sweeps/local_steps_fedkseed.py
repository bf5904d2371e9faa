"""Figure 5: FedKSeed after a warm-up, with its 200 local steps against a single one.

The paper shows it for a language model (Rouge-L 0.172 with 200 steps, 0.202 with one); here it is
image classification. The one step is on all of a client's images (section 4.1). At an equal rate it
moves the model by a fourteenth of what 200 steps do; so it comes a second time with their norm.

    python -m experiments.sweep --config=configs/cifar10_10_90.py \
        --sweep=configs/sweeps/local_steps_fedkseed.py --seeds=5 --workdir=R
"""

from ml_collections import ConfigDict

from zo_fl.config import sweeps
from zo_fl.config.sweeps import Point, Sweep

MANY = 200


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns a row a number of steps, one column: the config's split."""
    column = sweeps.split_name(config.data.high_fraction)
    base = {"algorithm": "fedavg+fedkseed", "fedkseed.num_rounds": config.zo.num_rounds}
    one = {"fedkseed.local_steps": 1, "fedkseed.batch_size": "all"}
    rate = sweeps.rate_of_equal_norm(config.fedkseed.lr, steps=(MANY, 1))
    points = [
        Point(f"{MANY} local steps", column, base | {"fedkseed.local_steps": MANY}),
        Point("1 local step, equal rate", column, base | one),
        Point("1 local step, equal norm", column, base | one | {"fedkseed.lr": rate}),
    ]
    return Sweep("Local steps of FedKSeed", "Figure 5", points, reference=points[0].row)
