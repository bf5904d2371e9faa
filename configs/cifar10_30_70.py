"""Table 2, CIFAR-10, 30/70: ZOWarmUp 72.4(2.5) %, High Res Only 65.6(3.6) % (5 seeds, mean(std)).

50 clients, 15 of them high-resource; ResNet18 with BatchNorm; 200 warm-up and 300 zeroth-order
rounds. Meant for a GPU or TPU: on 2 CPU cores a client's round takes a minute (docs/results/paper).

    python -m experiments.main --config=configs/cifar10_30_70.py

High Res Only is phase one alone: add ``--config.algorithm=fedavg``.
"""

from ml_collections import ConfigDict

from zo_fl.config import load


def get_config() -> ConfigDict:
    """Returns the 10/90 setting with 15 of 50 clients high-resource."""
    config = load("cifar10_10_90")
    config.data.high_fraction = 0.3
    return config
