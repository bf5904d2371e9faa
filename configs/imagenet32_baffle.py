"""ImageNet32: BAFFLE from scratch; not in the paper. Its own results are for smaller models.

50 clients, 5 of them high-resource; ResNet18 for 1,000 classes. 500 shared Gaussian forward
differences a round, Adam, GroupNorm.

    python -m experiments.main --config=configs/imagenet32_baffle.py
"""

from ml_collections import ConfigDict

from zo_fl.config import load


def get_config() -> ConfigDict:
    """Returns the config."""
    config = load("imagenet32_10_90")
    config.algorithm = "baffle"
    config.model.norm = "group"
    config.baffle.num_directions = 500
    return config
