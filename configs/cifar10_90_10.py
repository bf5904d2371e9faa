"""Table 2, CIFAR-10, 90/10: ZOWarmUp 84.5(1.3) %, High Res Only 81.4(1.6) % (5 seeds, mean(std)).

50 clients, 45 of them high-resource; ResNet18 with BatchNorm; 200 warm-up and 300 zeroth-order
rounds. Meant for a GPU or TPU: on 2 CPU cores a client's round takes a minute (docs/results/paper).

    python -m experiments.main --config=configs/cifar10_90_10.py

High Res Only is phase one alone: add ``--config.algorithm=fedavg``.
"""

from ml_collections import ConfigDict

from zo_fl.config import load


def get_config() -> ConfigDict:
    """Returns the 10/90 setting with 45 of 50 clients high-resource."""
    config = load("cifar10_10_90")
    config.data.high_fraction = 0.9
    return config
