"""Table 2, CIFAR-10, 70/30: ZOWarmUp 82.3(0.8) %, High Res Only 78.6(0.6) % (5 seeds, mean(std)).

50 clients, 35 of them high-resource; ResNet18 with BatchNorm; 200 warm-up and 300 zeroth-order
rounds. Meant for a GPU or TPU: on 2 CPU cores a client's round takes a minute (docs/results/paper).

    python -m experiments.main --config=configs/cifar10_70_30.py

High Res Only is phase one alone: add ``--config.algorithm=fedavg``.
"""

from ml_collections import ConfigDict

from zo_fl.config import load


def get_config() -> ConfigDict:
    """Returns the 10/90 setting with 35 of 50 clients high-resource."""
    config = load("cifar10_10_90")
    config.data.high_fraction = 0.7
    return config
