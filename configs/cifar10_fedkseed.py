"""CIFAR-10: FedKSeed from scratch: did not converge in the paper (Table 2).

50 clients, 5 of them high-resource; ResNet18. 4,096 candidate seeds, 200 local steps a round, 500
rounds.

    python -m experiments.main --config=configs/cifar10_fedkseed.py
"""

from ml_collections import ConfigDict

from zo_fl.config import load


def get_config() -> ConfigDict:
    """Returns the config."""
    config = load("cifar10_10_90")
    config.algorithm = "fedkseed"
    return config
