"""A warm-up by two clients, then scalars of all twenty: half a minute on a laptop, no download.

A CNN of 24,346 parameters on real CIFAR-10 images that come along: 20 clients of 112 training
images, 2 of them high-resource, alpha = 0.1. After the pivot every client sends 24 scalars a round
for the whitened last layer (``head_zo``). Settings by validation clients
(``sweeps/quickstart_settings.py``); figures: docs/results/quickstart.

    python -m experiments.main --config=configs/quickstart.py

``--config.algorithm=zowarmup`` is the paper's method as printed, on the same clients.
"""

from ml_collections import ConfigDict

from zo_fl.config import default

CLOSING = """\
closed form, from forward passes of the same clients alone: 59.9(1.7) %
  zo-fl --config=forward_only
scalars for all parameters, as the paper has them
  zo-fl --config=quickstart --config.algorithm=zowarmup
all methods on these clients
  zo-fl sweep --config=quickstart --sweep=methods --seeds=1 --workdir=runs/methods"""


def get_config() -> ConfigDict:
    """Returns the quickstart's config."""
    config = default()
    config.algorithm = "fedavg+head_zo"
    config.data.update(name="cifar10_sample", num_clients=20)
    config.model.update(name="cnn", norm="group")
    config.warmup.update(num_rounds=40, batch_size=16, lr=0.05, augment=False)
    config.head_zo.update(num_rounds=40, num_directions=24, lr=6.0, cache=True)
    config.zo.update(num_rounds=40, eps=1e-3, lr=0.01)
    # The other methods at this scale: rates by base.py's rule, about as many forward passes a round
    # as above, so that a sweep of all methods takes an hour or two. BAFFLE's own S is 100 to 500.
    config.heterofl.update(batch_size=16, milestones=(32, 64), augment=False)
    config.fedkseed.update(eps=1e-3, local_steps=20, batch_size=16, lr=5e-4)
    config.decomfl.update(num_directions=3, local_steps=2, batch_size=56, lr=9e-4)
    config.fedzo.update(num_directions=2, local_steps=4, batch_size=56, local_lr=2e-3)
    config.baffle.num_directions = 10
    config.mezo.lr = 7e-4
    return config
