"""ImageNet32: FedZO from scratch; not in the paper. Expect it near chance after 500 rounds.

50 clients, 5 of them high-resource; ResNet18 for 1,000 classes. 10 local steps of forward
differences on batches of 50; sends the whole model, as its source does.

    python -m experiments.main --config=configs/imagenet32_fedzo.py
"""

from ml_collections import ConfigDict

from zo_fl.config import load


def get_config() -> ConfigDict:
    """Returns the config."""
    config = load("imagenet32_10_90")
    config.algorithm = "fedzo"
    config.model.norm = "group"
    return config
