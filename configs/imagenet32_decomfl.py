"""ImageNet32: DeComFL from scratch; not in the paper. Expect it near chance after 500 rounds.

50 clients, 5 of them high-resource; ResNet18 for 1,000 classes. Directions shared by all clients,
4 local steps on batches of 64. As second phase: ``--config.algorithm=fedavg+decomfl
--config.decomfl.num_rounds=300``.

    python -m experiments.main --config=configs/imagenet32_decomfl.py
"""

from ml_collections import ConfigDict

from zo_fl.config import load


def get_config() -> ConfigDict:
    """Returns the config."""
    config = load("imagenet32_10_90")
    config.algorithm = "decomfl"
    config.model.norm = "group"  # its own models have no batch statistics either
    return config
