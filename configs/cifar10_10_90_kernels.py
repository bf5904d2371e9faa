"""CIFAR-10, 10/90, forward passes only, and no pixel sent: the most that they reach here.

The five high-resource clients send sums over windows of their images: moments, and means that
become kernels, of one layer and of a network of two. Then every client makes one forward pass over
its examples, keeps 63,488 features of each, and sends 1.3 MB a step of conjugate gradients.
docs/results/forward_only.md has what it reaches, and how long it takes.

    python -m experiments.main --config=configs/cifar10_10_90_kernels.py
"""

from ml_collections import ConfigDict

from zo_fl.config import load


def get_config() -> ConfigDict:
    """Returns the setting; fewer kernels are a fraction of the time."""
    config = load("cifar10_10_90_forward")
    config.algorithm = "patches+ridge_cg"
    config.patches.kernels = "means"
    config.model.update(kernels=3328, network=4096)
    config.ridge_cg.update(num_rounds=30, penalty=0.015, shrinkage=0.1)
    config.ridge_cg.update(encoding="float16", cache=True, calibrate=False, microbatch=2)
    config.run.eval_every = 1000  # at the end alone: the test set's features take minutes
    return config
