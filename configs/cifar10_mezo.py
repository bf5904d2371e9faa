"""CIFAR-10: MeZO from scratch, one learner with all data; not in the paper.

One direction a step on batches of 64. Its source takes 100,000 steps to fine-tune a trained model.

    python -m experiments.main --config=configs/cifar10_mezo.py
"""

from ml_collections import ConfigDict

from zo_fl.config import load


def get_config() -> ConfigDict:
    """Returns the config."""
    config = load("cifar10_10_90")
    config.algorithm = "mezo"
    config.data.update(num_clients=1, partition="iid", high_fraction=1.0)
    config.model.norm = "group"
    config.mezo.num_rounds = 100_000
    config.run.update(rounds_per_jit=100, eval_every=1000, checkpoint_every=1000)
    return config
