"""Table 2, ImageNet32, 50/50: ZOWarmUp 31.9(0.4) %, High Res Only 31.5(0.3) % (5 seeds, mean(std)).

50 clients, 25 of them high-resource; ResNet18 with BatchNorm; 200 warm-up and 300 zeroth-order
rounds. Meant for a GPU or TPU: on 2 CPU cores a client's round takes a minute (docs/results/paper).

The data set is 3.5 GB and has to be prepared by TFDS beforehand (docs/guides/data.md).

    python -m experiments.main --config=configs/imagenet32_50_50.py

High Res Only is phase one alone: add ``--config.algorithm=fedavg``.
"""

from ml_collections import ConfigDict

from zo_fl.config import load


def get_config() -> ConfigDict:
    """Returns the 10/90 setting with 25 of 50 clients high-resource."""
    config = load("imagenet32_10_90")
    config.data.high_fraction = 0.5
    return config
