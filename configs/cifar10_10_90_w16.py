"""Table 2, CIFAR-10, 10/90, at a size that two CPU cores finish: ResNet18 of 16 channels, not 64.

A sixteenth of the work of a pass. 60 + 60 rounds instead of 200 + 300, about an hour of two cores,
and in zeroth-order rounds 64 of a client's 900 images: of 150 directions in 700,000 coordinates it
is directions that are scarce, not images. All else is the paper's: 50 clients, alpha 0.1,
BatchNorm, 3 epochs, batch 64.
No figure of the paper is for this size: ``experiments/plans/table2_w16.py`` asks what is left.

    python -m experiments.main --config=configs/cifar10_10_90_w16.py
"""

from ml_collections import ConfigDict

from zo_fl.config import load


def get_config() -> ConfigDict:
    """Returns the 10/90 split with a quarter of the channels and fewer rounds."""
    config = load("cifar10_10_90")
    config.model.width = 0.25
    config.warmup.num_rounds = 60
    config.zo.num_rounds = 60
    config.zo.batch_size = 64
    config.run.rounds_per_jit = 2  # of a minute each: a run that is stopped ends within two
    return config
