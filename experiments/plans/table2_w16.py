"""Table 2 with 16 channels: what phase two gains at 10/90, and the part that is statistics'.

    zo-fl campaign --plan=table2_w16 --minutes=90

All runs of a seed share partition and warm-up. The rates are chosen on 50/50 by the validation
clients (``rates``) and stand in ``configs/cifar10_10_90_w16.py``. At the paper's width, on a GPU:
``--config.model.width=1.0 --records=R``.
"""

from typing import Any

from zo_fl.config import sweeps
from zo_fl.config.sweeps import HIGH_RES_ONLY, ZOWARMUP, Plan, Point, Step, Sweep
from zo_fl.engine.statistics import POLICIES, UPLOADED

# High-resource clients a round where there are many: a round costs what it does at 10/90.
_SMALL_COHORT = 5


def rates(config: Any) -> Sweep:
    """Returns the grid of both rates: few rounds at 50/50, judged by the validation clients."""
    shared = {"data.high_fraction": 0.5, "warmup.cohort_size": _SMALL_COHORT}
    shared |= {"warmup.num_rounds": 20, "zo.num_rounds": 20}
    points = [
        Point(HIGH_RES_ONLY, f"lr = {lr:g}", {"algorithm": "fedavg", "warmup.lr": lr, **shared})
        for lr in (0.02, 0.05, 0.1)
    ]
    points += [
        Point(ZOWARMUP, f"lr = {lr:g}", {"algorithm": "zowarmup", "zo.lr": lr, **shared})
        for lr in (2e-4, 8e-4, 3.2e-3)
    ]
    return Sweep("Rates at 50/50", "", points, quantity="validation", axis="lr")


def main_rows(config: Any) -> Sweep:
    """Returns the rows of the question at 10/90."""
    rows = {
        **_question(config, {}),
        # Weights stay; what moves is the statistics alone, and they need no directions.
        **{
            f"Rate 0, {policy}": {
                "algorithm": "zowarmup",
                "zo.lr": 0.0,
                "zo.bn_policy": policy,
                "zo.num_directions": 1,
                "zo.num_rounds": 30 if policy in UPLOADED else 1,
            }
            for policy in POLICIES
        },
        "Ridge": {"algorithm": "fedavg+ridge"},
        "Last layer": {"algorithm": "fedavg+head_zo"},
        "First order by all, 15 rounds": {
            "algorithm": "fedavg+fedavg_all",
            "zo.num_rounds": 15,
            "zo.cohort_size": 10,
        },
    }
    return _sweep("10/90", "Phase two at 10/90", rows)


def images(config: Any) -> Sweep:
    """Returns ten zeroth-order rounds that look at part or at all of a client's images."""
    rows = {
        name: {"algorithm": "zowarmup", "zo.num_rounds": 10, "zo.batch_size": size}
        for name, size in (("64 images", 64), ("All images", "all"))
    }
    return _sweep("10/90", "Images a zeroth-order round", rows)


def split(high_fraction: float) -> Step:
    """Returns the step of another split, its warm-up by few clients a round."""
    name = sweeps.split_name(high_fraction)
    shared = {"data.high_fraction": high_fraction, "warmup.cohort_size": _SMALL_COHORT}

    def sweep(config: Any) -> Sweep:
        return _sweep(name, f"Phase two at {name}", _question(config, shared))

    return Step(f"split_{name.replace('/', '_')}", sweep, range(1))


def directions(config: Any) -> Sweep:
    """Returns distributions of directions, from the same warm-ups."""
    rows = {
        name: {"algorithm": "zowarmup", "zo.distribution": name}
        for name in ("rademacher", "gaussian")
    }
    return _sweep("10/90", "Directions", rows)


def group_norm(config: Any) -> Sweep:
    """Returns the question without batch statistics."""
    return _sweep("10/90", "GroupNorm", _question(config, {"model.norm": "group"}))


def _question(config: Any, shared: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the rows of the question, with overrides that they share."""
    rows = {
        "The pivot": {"algorithm": "fedavg"},
        ZOWARMUP: {"algorithm": "zowarmup"},
        HIGH_RES_ONLY: {"algorithm": "fedavg", "warmup.num_rounds": sweeps.total_rounds(config)},
    }
    return {name: {**overrides, **shared} for name, overrides in rows.items()}


def _sweep(column: str, title: str, rows: dict[str, dict]) -> Sweep:
    points = [Point(row, column, overrides) for row, overrides in rows.items()]
    reference = HIGH_RES_ONLY if HIGH_RES_ONLY in rows else points[0].row
    return Sweep(title, "", points, reference=reference)


def get_plan() -> Plan:
    """Returns the plan."""
    return Plan(
        "Does phase two lift a warmed-up ResNet18 with BatchNorm, and what of it is statistics?",
        "cifar10_10_90_w16",
        [
            Step("rates", rates, range(1)),
            Step("split_10_90", main_rows, range(3)),
            Step("images", images, range(1)),
            split(0.5),
            split(0.9),
            Step("split_10_90", main_rows, range(3, 5)),
            Step("group_norm", group_norm, range(3)),
            Step("directions", directions, range(3)),
        ],
    )
