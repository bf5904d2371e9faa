"""CIFAR-10: 53.4(5.3) % with ZOWarmUp+FedKSeed at 10/90 (Table 2, 5 seeds, mean(std)).

50 clients, 5 of them high-resource; ResNet18. 200 warm-up rounds, then 300 of FedKSeed with one
local step on all of a client's images (section 4.1). Its directions a round and the norm of its
update are ZOWarmUp's.

    python -m experiments.main --config=configs/cifar10_zowarmup_fedkseed.py
"""

from ml_collections import ConfigDict

from zo_fl.config import load


def get_config() -> ConfigDict:
    """Returns the config."""
    config = load("cifar10_10_90")
    config.algorithm = "fedavg+fedkseed"
    config.fedkseed.update(num_rounds=300, local_steps=1, batch_size="all")
    config.fedkseed.update(num_directions=3, lr=config.zo.lr * config.zo.tau**2)
    return config
