"""CIFAR-10: Table 7, 10/90: 48.8(5.4) % if high-resource clients stay first-order after the pivot.

50 clients, 5 of them high-resource; ResNet18. The same with all clients in zeroth-order rounds:
51.1(4.3) % (``configs/cifar10_10_90.py``).

    python -m experiments.main --config=configs/cifar10_mixed_tiers.py
"""

from ml_collections import ConfigDict

from zo_fl.config import load


def get_config() -> ConfigDict:
    """Returns the config."""
    config = load("cifar10_10_90")
    config.algorithm = "fedavg+mixed_tiers"
    return config
