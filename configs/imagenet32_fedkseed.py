"""ImageNet32: FedKSeed from scratch: did not converge in the paper (Table 2).

50 clients, 5 of them high-resource; ResNet18 for 1,000 classes. 4,096 candidate seeds, 200 local
steps a round, 500 rounds.

    python -m experiments.main --config=configs/imagenet32_fedkseed.py
"""

from ml_collections import ConfigDict

from zo_fl.config import load


def get_config() -> ConfigDict:
    """Returns the config."""
    config = load("imagenet32_10_90")
    config.algorithm = "fedkseed"
    return config
