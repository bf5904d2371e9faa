"""ImageNet32: FedKSeed-Pro from scratch, which draws seeds by the size of their scalars.

Not in the paper. 50 clients, 5 of them high-resource; ResNet18 for 1,000 classes. 4,096 candidate
seeds, 200 local steps a round, 500 rounds.

    python -m experiments.main --config=configs/imagenet32_fedkseed_pro.py
"""

from ml_collections import ConfigDict

from zo_fl.config import load


def get_config() -> ConfigDict:
    """Returns the config."""
    config = load("imagenet32_10_90")
    config.algorithm = "fedkseed_pro"
    return config
