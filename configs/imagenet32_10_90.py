"""Table 2, ImageNet32, 10/90: ZOWarmUp 12.3(0.8) %, High Res Only 10.9(0.3) % (5 seeds, mean(std)).

50 clients, 5 of them high-resource; ResNet18 with BatchNorm; 200 warm-up and 300 zeroth-order
rounds. Meant for a GPU or TPU: on 2 CPU cores a client's round takes a minute (docs/results/paper).

The data set is 3.5 GB and has to be prepared by TFDS beforehand (docs/guides/data.md).

    python -m experiments.main --config=configs/imagenet32_10_90.py

High Res Only is phase one alone: add ``--config.algorithm=fedavg``.
"""

from ml_collections import ConfigDict

from zo_fl.config import default


def get_config() -> ConfigDict:
    """Returns the setting; ImageNet32's client sets are too large for one forward pass."""
    config = default()
    config.data.update(name="imagenet_resized/32x32", high_fraction=0.1)
    config.zo.microbatch = 1153  # 20 passes over 23,060 images
    return config
