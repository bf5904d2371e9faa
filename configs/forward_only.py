"""Two minutes without a single backward pass, on real CIFAR-10 images that come along.

The clients of the quickstart, 2 of 20 high-resource: kernels from sums over patches of their
images, then ridge regression of everyone's labels on 512 features, from sums that each sends once.

    python -m experiments.main --config=configs/forward_only.py
"""

from ml_collections import ConfigDict

from zo_fl.config import default


def get_config() -> ConfigDict:
    """Returns the quickstart's data, forward passes only."""
    config = default()
    config.algorithm = "patches+ridge"
    config.data.update(name="cifar10_sample", num_clients=20)
    config.model.update(name="patches", norm="patch", kernels=64)
    config.ridge.update(penalties=(1e-2, 3e-2, 1e-1, 3e-1, 1.0), microbatch=2)
    config.run.eval_batch_size = 2  # the patches of two images fit into a CPU's cache
    return config
