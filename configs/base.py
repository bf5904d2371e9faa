"""Every field with its default: the paper's setting where the paper states it.

``python -m experiments.configs`` prints them all. A field is declared beside the function that
takes it (``zo_fl/config`` says where); one that is not declared is an error.

Learning rates are not in the paper. ``warmup.lr`` is its author's public default order (0.1 to
0.03); ``zo.lr`` follows from matching the norm of the zeroth-order update, lr * tau^2 * |grad| *
sqrt(d / (S * cohort)), to that of a first-order step of rate 0.01 to 0.1; |grad| is the root mean
square over the clients of the norms of their own gradients. The other zeroth-order
methods' rates follow by matching the norm of *their* update of a round to it: with k local steps of
S directions each it is lr * tau^2 * |grad| * sqrt(k d / (S * cohort)), without the cohort if
directions are shared. HeteroFL's and BAFFLE's are their sources'. None was tuned.

Other methods than ZOWarmUp start from scratch if they run alone, and take all 500 rounds; after a
warm-up (``algorithm="fedavg+decomfl"``) set their ``num_rounds`` to 300.
"""

from ml_collections import ConfigDict

from zo_fl import config


def get_config() -> ConfigDict:
    """Returns ZOWarmUp on CIFAR-10, ResNet18, 10/90 split."""
    return config.default()
