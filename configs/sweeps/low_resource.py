"""All that a low-resource client can do at one task, for `zo-fl pareto`.

From a warm-up by the high tier: nothing more, scalars, first-order rounds for all, the same one
example at a time, gradients of the head or scalars of them, closed-form heads. Without any
training: image patches and closed-form heads, scalars after them, and what the high tier alone gets
from these.
Expect closed form to win at every price but against first-order rounds for all once there is data
enough to train on, and scalars to add little to it.

    python -m experiments.sweep --config=configs/quickstart.py \
        --sweep=configs/sweeps/low_resource.py --seeds=5 --workdir=R
    python -m experiments.pareto --runs=R
"""

from typing import Any

from ml_collections import ConfigDict

from zo_fl.config import sweeps
from zo_fl.config.sweeps import Point, Sweep

# Few examples want larger penalties than whole data sets.
_PENALTIES = (1e-2, 3e-2, 1e-1, 3e-1, 1.0)
_PATCHES = {"model.name": "patches", "model.norm": "patch", "model.kernels": 64}


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns one column: the split of the config."""
    ridge = {"ridge.penalties": _PENALTIES}
    gentle = {"zo.lr": config.zo.lr / 10}  # logits that fit have larger gradients of the head
    rows: dict[str, dict[str, Any]] = {
        sweeps.HIGH_RES_ONLY: {"algorithm": "fedavg"},
        sweeps.ZOWARMUP: {"algorithm": "zowarmup"},
        "First-order for all": {"algorithm": "fedavg+fedavg_all"},
        "Warm-up, head SGD": {"algorithm": "fedavg+head_sgd"},
        "Warm-up, scalars for the head": {
            "algorithm": "fedavg+head_zo",
            "head_zo.cache": True,
            "head_zo.num_directions": 3,
            "head_zo.lr": 0.3,
        },
        "Warm-up, ridge": {"algorithm": "fedavg+ridge", **ridge},
        "Warm-up, ridge, scalars": {"algorithm": "fedavg+ridge+zo", **ridge, **gentle},
        "Warm-up, class means": {"algorithm": "fedavg+gaussian_head"},
        "Untrained, ridge": {"algorithm": "ridge", **ridge},
        "Patches, class means, int4": _means(),
        "Patches, ridge": {"algorithm": "patches+ridge", **ridge, **_PATCHES},
        "Patches, ridge, scalars": {"algorithm": "patches+ridge+zo", **ridge, **gentle, **_PATCHES},
        "Patches, ridge of the high tier": {
            "algorithm": "patches+ridge",
            "ridge.tiers": "high",
            **ridge,
            **_PATCHES,
        },
    }
    if config.model.norm != "batch":
        one_by_one = {"algorithm": "fedavg+fedavg_all", "warmup.microbatch": 1}
        rows["First-order for all, one example at a time"] = one_by_one
    column = sweeps.split_name(config.data.high_fraction)
    points = [Point(row, column, overrides) for row, overrides in rows.items()]
    return Sweep("A low-resource client", "", points, reference=sweeps.HIGH_RES_ONLY)


def _means() -> dict[str, Any]:
    return {
        "algorithm": "patches+gaussian_head",
        "gaussian_head.sketch": 64,
        "gaussian_head.encoding": "int4",
        "gaussian_head.calibrate": False,
        **_PATCHES,
    }
