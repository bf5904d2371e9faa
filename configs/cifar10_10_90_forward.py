"""CIFAR-10, 10/90, forward passes only: image patches, then ridge from everyone's sums, once.

No client trains: the five high-resource ones send second moments of their image patches and 832 of
these, which become convolution kernels; then every client makes one forward pass over its examples
and sends sums over 6,656 features in float16, 45 MB once: what a high-resource client uploads in
*one* round of ResNet18. docs/results/forward_only.md has what fewer reach.

    python -m experiments.main --config=configs/cifar10_10_90_forward.py
"""

from ml_collections import ConfigDict

from zo_fl.config import default


def get_config() -> ConfigDict:
    """Returns the best setting; smaller ones are in sweeps/forward_only.py."""
    config = default()
    config.algorithm = "patches+ridge"
    config.data.high_fraction = 0.1
    config.model.update(name="patches", norm="patch", kernels=832)
    config.ridge.update(encoding="float16", calibrate=False, microbatch=2)
    config.gaussian_head.microbatch = 2
    config.run.eval_batch_size = 2  # the patches of two images fit into a CPU's cache
    return config
