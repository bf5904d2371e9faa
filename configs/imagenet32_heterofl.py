"""ImageNet32: 16.3(0.4) % with HeteroFL at 10/90 (Table 2, 5 seeds, mean(std)).

50 clients, 5 of them high-resource; ResNet18 for 1,000 classes. Its model is the pre-activation
ResNet18; 500 rounds, rate divided by 10 after 200 and 400, as in the configuration of the paper's
author. High-resource clients train the whole model, the others half of its width.

    python -m experiments.main --config=configs/imagenet32_heterofl.py
"""

from ml_collections import ConfigDict

from zo_fl.config import load


def get_config() -> ConfigDict:
    """Returns the config."""
    config = load("imagenet32_10_90")
    config.algorithm = "heterofl"
    config.model.name = "preact_resnet18"
    return config
