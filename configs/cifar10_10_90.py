"""Table 2, CIFAR-10, 10/90: ZOWarmUp 54.3(4.8) %, High Res Only 44.3(6.0) % (5 seeds, mean(std)).

50 clients, 5 of them high-resource; ResNet18 with BatchNorm; 200 warm-up and 300 zeroth-order
rounds. Meant for a GPU or TPU: on 2 CPU cores a client's round takes a minute (docs/results/paper).

    python -m experiments.main --config=configs/cifar10_10_90.py

High Res Only is phase one alone: add ``--config.algorithm=fedavg``.
"""

from ml_collections import ConfigDict

from zo_fl.config import default


def get_config() -> ConfigDict:
    """Returns the paper's main setting, which is the default."""
    config = default()
    config.data.high_fraction = 0.1
    return config
