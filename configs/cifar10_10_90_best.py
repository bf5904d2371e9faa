"""CIFAR-10, 10/90, with the paper's warm-up and its scalars put to better use: by the last layer.

The 300 rounds of 3 scalars that every client sends after the pivot are exact derivatives of its
loss by the last layer alone, along whitened principal directions of the high tier's features
(``head_zo``), instead of differences along random directions of all 11 million parameters. Of a
low-resource client that takes, by ``python -m experiments.costs``:

                        as printed                         here
    sent                3.6 kB, and 11.5 MB of statistics  3.6 kB
    forward passes      1,800 over its images, and 300     1; it keeps 512 numbers an image
    memory              95.4 MB, 4 images at once          52.5 MB, 4 at once

On the quickstart's clients the same exchange gains 10.7 points over the warm-up (95 % interval 7.7
to 13.7, ten seeds; docs/results/scalars.md) where scalars as printed gain 4.5; on
ResNet18 it has not been run. Closed-form heads gain more for fewer bytes
(``cifar10_10_90_forward.py``); this is what scalars buy.

    python -m experiments.main --config=configs/cifar10_10_90_best.py

``--config.algorithm=zowarmup`` is the paper's method, bit for bit; ``fedavg+head_zo+zo`` goes on
with its scalars, and is that method where ``head_zo.num_rounds`` is 0.
"""

from ml_collections import ConfigDict

from zo_fl.config import default


def get_config() -> ConfigDict:
    """Returns the paper's setting, with another second phase."""
    config = default()
    config.algorithm = "fedavg+head_zo"
    config.data.high_fraction = 0.1
    config.head_zo.update(num_rounds=config.zo.num_rounds, cache=True)
    return config
