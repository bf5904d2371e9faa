"""ZOWarmUp in minutes on a laptop: a 24,346-parameter CNN on real CIFAR-10 images that come along.

20 clients of 112 training images, 2 of them high-resource, alpha = 0.1. Over five seeds the
accuracy went from 20.4(5.8) % at the pivot to 24.8(4.8) %, the test loss from 3.7 to 2.2 (README).
One to two minutes on 2 CPU cores.

    python -m experiments.main --config=configs/quickstart.py
"""

from ml_collections import ConfigDict

from zo_fl.config import default


def get_config() -> ConfigDict:
    """Returns the quickstart's config."""
    config = default()
    config.data.update(name="cifar10_sample", num_clients=20)
    config.model.update(name="cnn", norm="group")
    config.warmup.update(num_rounds=40, batch_size=16, lr=0.05, augment=False)
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
