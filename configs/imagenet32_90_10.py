"""Table 2, ImageNet32, 90/10: ZOWarmUp 41.5(1.6) %, High Res Only 39.9(0.2) % (5 seeds, mean(std)).

50 clients, 45 of them high-resource; ResNet18 with BatchNorm; 200 warm-up and 300 zeroth-order
rounds. Meant for a GPU or TPU: on 2 CPU cores a client's round takes a minute (docs/results/paper).

The data set is 3.5 GB and has to be prepared by TFDS beforehand (docs/guides/data.md).

    python -m experiments.main --config=configs/imagenet32_90_10.py

High Res Only is phase one alone: add ``--config.algorithm=fedavg``.
"""

from ml_collections import ConfigDict

from zo_fl.config import load


def get_config() -> ConfigDict:
    """Returns the 10/90 setting with 45 of 50 clients high-resource."""
    config = load("imagenet32_10_90")
    config.data.high_fraction = 0.9
    return config
