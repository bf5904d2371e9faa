"""ImageNet32: High tier first-order after the pivot; the paper has it for CIFAR-10 only.

50 clients, 5 of them high-resource; ResNet18 for 1,000 classes. The same with all clients in
zeroth-order rounds: ``configs/imagenet32_10_90.py``.

    python -m experiments.main --config=configs/imagenet32_mixed_tiers.py
"""

from ml_collections import ConfigDict

from zo_fl.config import load


def get_config() -> ConfigDict:
    """Returns the config."""
    config = load("imagenet32_10_90")
    config.algorithm = "fedavg+mixed_tiers"
    return config
