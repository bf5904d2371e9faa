"""ImageNet32's little sister: 200 classes, 40,000 training images at 32x32, split 10/90.

Not in the paper: its ImageNet32 setting at a size that one machine holds easily. 50 clients of 720
training images, 5 of them high-resource. On 2 CPU cores a client's round takes 35 s
(docs/results/paper.md): meant for a GPU or TPU; no accuracy has been measured yet. Reads the
prepared TFDS set ``imagenet32_200``.

    python -m experiments.main --config=configs/imagenet32_200_10_90.py --config.data.data_dir=D
"""

from ml_collections import ConfigDict

from zo_fl.config import default


def get_config() -> ConfigDict:
    """Returns the main setting on the 200-class set."""
    config = default()
    config.data.update(name="imagenet32_200", high_fraction=0.1)
    return config
