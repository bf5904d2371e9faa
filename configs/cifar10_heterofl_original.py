"""CIFAR-10: HeteroFL as in its own paper (two classes a client); not in ZOWarmUp.

800 rounds of 5 epochs with batches of 10, rate divided by 10 after 300 and 500; 100 clients, 10 a
round, two shards each; five levels, re-drawn every round.

    python -m experiments.main --config=configs/cifar10_heterofl_original.py
"""

from ml_collections import ConfigDict

from zo_fl.config import load


def get_config() -> ConfigDict:
    """Returns the config."""
    config = load("cifar10_10_90")
    config.algorithm = "heterofl"
    config.model.name = "preact_resnet18"
    config.data.update(num_clients=100, partition="shards", high_fraction=0.2)
    config.heterofl.update(num_rounds=800, local_epochs=5, batch_size=10, milestones=(300, 500))
    config.heterofl.update(cohort_size=10, levels="abcde", assignment="dynamic")
    return config
