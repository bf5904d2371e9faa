"""ImageNet32: 11.2(0.7) % with ZOWarmUp+FedKSeed at 10/90 (Table 2, 5 seeds, mean(std)).

50 clients, 5 of them high-resource; ResNet18 for 1,000 classes. 200 warm-up rounds, then 300 of
FedKSeed with one local step on all of a client's images (section 4.1). Its directions a round and
the norm of its update are ZOWarmUp's.

    python -m experiments.main --config=configs/imagenet32_zowarmup_fedkseed.py
"""

from ml_collections import ConfigDict

from zo_fl.config import load


def get_config() -> ConfigDict:
    """Returns the config."""
    config = load("imagenet32_10_90")
    config.algorithm = "fedavg+fedkseed"
    config.fedkseed.update(num_rounds=300, local_steps=1, batch_size="all")
    config.fedkseed.update(num_directions=3, lr=config.zo.lr * config.zo.tau**2)
    return config
