"""CIFAR-10, 10/90, forward passes only, and no pixel sent: the best that they reach here.

No client trains. The five high-resource ones send sums over windows of their images: moments, and
means that become kernels, of one layer and of a network of two. Then every client makes one forward
pass over its examples, keeps 63,488 features of each, and sends 1.3 MB a step of conjugate
gradients. It takes half an hour; docs/results/forward_only.md has what fewer kernels reach.

    python -m experiments.main --config=configs/cifar10_10_90_forward.py
"""

from ml_collections import ConfigDict

from zo_fl.config import default


def get_config() -> ConfigDict:
    """Returns the best setting; cheaper ones are in sweeps/forward_only.py."""
    config = default()
    config.algorithm = "patches+ridge_cg"
    config.data.high_fraction = 0.1
    config.model.update(name="patches", norm="patch", kernels=3328, network=4096)
    config.ridge_cg.update(num_rounds=30, penalty=0.015, shrinkage=0.1)
    config.ridge_cg.update(encoding="float16", cache=True, calibrate=False, microbatch=2)
    config.ridge.update(encoding="float16", calibrate=False, microbatch=2)
    config.gaussian_head.update(calibrate=False, microbatch=2)
    config.run.update(eval_every=1000, eval_batch_size=2)  # the test set's features take minutes
    return config
