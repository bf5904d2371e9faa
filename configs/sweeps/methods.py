"""Table 2, all methods at the config's own split, and the controls that the paper lacks.

Expect ZOWarmUp and ZOWarmUp+FedKSeed above High Res Only, and every zeroth-order method without a
warm-up near chance ("nc"). The rows with lr = 0 show how much of the gain batch statistics alone
bring; "High Res Only, all rounds" spends the zeroth-order rounds on more warm-up instead.

    python -m experiments.sweep --config=configs/cifar10_10_90.py \
        --sweep=configs/sweeps/methods.py --seeds=5 --workdir=R
"""

from typing import Any

from ml_collections import ConfigDict

from zo_fl.config import sweeps
from zo_fl.config.sweeps import Point, Sweep
from zo_fl.engine.statistics import POLICIES


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns one column: all methods with the same partition, tiers and number of rounds."""
    column = sweeps.split_name(config.data.high_fraction)
    rows = _first_order(config) | _with_warmup(config) | _from_scratch(config) | _controls(config)
    points = [Point(row, column, overrides) for row, overrides in rows.items()]
    return Sweep("Methods", "Table 2", points, reference=sweeps.HIGH_RES_ONLY)


def _first_order(config: ConfigDict) -> dict[str, dict[str, Any]]:
    total = sweeps.total_rounds(config)
    return {
        "HeteroFL": {"algorithm": "heterofl", "heterofl.num_rounds": total},
        sweeps.HIGH_RES_ONLY: {"algorithm": "fedavg"},
        "High Res Only, all rounds": {"algorithm": "fedavg", "warmup.num_rounds": total},
    }


def _with_warmup(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """Returns the methods that go on from the pivot, each for the zeroth-order rounds."""
    rounds = config.zo.num_rounds
    fedkseed = {"fedkseed.num_rounds": rounds} | one_step_of_fedkseed(config)
    # BAFFLE's rate is made for random weights; Adam would walk away from trained ones.
    baffle = {"baffle.num_rounds": rounds, "baffle.lr": config.baffle.lr / 10}
    return {
        sweeps.ZOWARMUP: {"algorithm": "zowarmup"},
        "ZOWarmUp+FedKSeed": {"algorithm": "fedavg+fedkseed", **fedkseed},
        "ZOWarmUp+FedKSeed-Pro": {"algorithm": "fedavg+fedkseed_pro", **fedkseed},
        "ZOWarmUp+DeComFL": {"algorithm": "fedavg+decomfl", "decomfl.num_rounds": rounds},
        "ZOWarmUp+FedZO": {"algorithm": "fedavg+fedzo", "fedzo.num_rounds": rounds},
        "ZOWarmUp+BAFFLE": {"algorithm": "fedavg+baffle", **baffle},
        "High tier first-order": {"algorithm": "fedavg+mixed_tiers"},
        "First-order for all": {"algorithm": "fedavg+fedavg_all"},
    }


def one_step_of_fedkseed(config: ConfigDict) -> dict[str, Any]:
    """Returns FedKSeed as the paper's second phase (section 4.1): one step on a client's whole set.

    As many directions as ZOWarmUp, and the rate that makes an update of the same norm.
    """
    return {
        "fedkseed.local_steps": 1,
        "fedkseed.batch_size": "all",
        "fedkseed.num_directions": config.zo.num_directions,
        "fedkseed.lr": config.zo.lr * config.zo.tau**2,
    }


def _from_scratch(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """Returns the methods without a warm-up, each for all rounds."""
    total = sweeps.total_rounds(config)
    return {
        "FedKSeed from scratch": {"algorithm": "fedkseed", "fedkseed.num_rounds": total},
        "FedKSeed-Pro from scratch": {"algorithm": "fedkseed_pro", "fedkseed.num_rounds": total},
        "ZO from scratch": {"algorithm": "zo", "zo.num_rounds": total},
        "DeComFL from scratch": {"algorithm": "decomfl", "decomfl.num_rounds": total},
        "FedZO from scratch": {"algorithm": "fedzo", "fedzo.num_rounds": total},
        "BAFFLE from scratch": {"algorithm": "baffle", "baffle.num_rounds": total},
        "MeZO from scratch": {"algorithm": "mezo", "mezo.num_rounds": total},
    }


def _controls(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """Returns ZOWarmUp with a second phase that moves no parameter."""
    still = {"algorithm": "zowarmup", "zo.lr": 0.0}
    if config.model.norm != "batch":
        return {"ZOWarmUp, lr = 0": still}
    return {f"ZOWarmUp, lr = 0, {name}": still | {"zo.bn_policy": name} for name in POLICIES}
