"""Forward passes only: accuracy against the bytes that a low-resource client sends.

Class means (the discriminant) for a few hundred bytes to a few ten thousand, ridge regression from
there on, by a few preconditioned conjugate gradients or from a Gram matrix; what the high tier
alone gets from the same features, without anyone's help; and a network's features beside them.
Expect accuracy to rise with the bytes, and every row to beat the high tier alone.

    python -m experiments.sweep --config=configs/cifar10_10_90_forward.py \
        --sweep=configs/sweeps/forward_only.py --seeds=5 --workdir=R
    python -m experiments.pareto --runs=R
"""

from typing import Any

from ml_collections import ConfigDict

from zo_fl.config import sweeps
from zo_fl.config.sweeps import Point, Sweep

MEANS = ((64, "int4"), (64, "int8"), (256, "int8"), (512, "int8"))
STEPS = (2, 4, 8)  # in halves: what bytes round away grows with each step
ALONE = "High tier alone"


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns one column: the split of the config, its numbers of kernels and fractions of them.

    A config without a network has no rows with one.
    """
    most, network = config.model.kernels, config.model.network
    large, medium, small = (max(most // part, 2) for part in (4, 13, 52))
    rows: dict[str, dict[str, Any]] = {}
    for k, encoding in MEANS:
        if k <= 8 * medium:
            rows[f"Class means, {k} directions, {encoding}"] = _means(medium, k, encoding)
    rows[f"Class means, {8 * medium:,} features, int8"] = _means(medium, "all", "int8")
    rows[f"Class means, {8 * medium:,} features"] = _means(medium, "all", "float32")
    for count in STEPS:
        name = f"Conjugate gradients, {8 * medium:,} features, {count} steps, float16"
        rows[name] = _conjugate(medium, count)
    rows[f"Ridge, {2 * medium:,} directions"] = _ridge(medium) | {"ridge.sketch": 2 * medium}
    rows[f"Ridge, {8 * medium:,} features, int8"] = _ridge(medium, "int8")
    for kernels in (medium, small):
        rows[f"Ridge, {8 * kernels:,} features"] = _ridge(kernels)
        rows[f"{ALONE}, {8 * kernels:,} features"] = _ridge(kernels) | {"ridge.tiers": "high"}
    rows[f"Conjugate gradients, {8 * large:,} features, 8 steps, float16"] = _conjugate(large, 8)
    rows[f"Ridge, {8 * large:,} features, float16"] = _ridge(large, "float16")
    if network not in ("none", 0):
        for first, second in ((large, network // 4), (5 * most // 13, network // 2)):
            rows |= _two_kinds(first, max(second, 1))
        rows |= _two_kinds(most, network)
    column = sweeps.split_name(config.data.high_fraction)
    points = [Point(row, column, overrides) for row, overrides in rows.items()]
    reference = f"{ALONE}, {8 * medium:,} features"
    return Sweep("Forward passes only", "", points, reference=reference)


def _ridge(kernels: int, encoding: str = "float32") -> dict[str, Any]:
    return {
        "algorithm": "patches+ridge",
        "model.kernels": kernels,
        "model.network": "none",
        "ridge.encoding": encoding,
        "ridge.calibrate": False,
    }


def _conjugate(kernels: int, count: int) -> dict[str, Any]:
    return {
        "algorithm": "patches+ridge_cg",
        "model.kernels": kernels,
        "model.network": "none",
        "ridge_cg.num_rounds": count,
        "ridge_cg.check_every": "none",
        "ridge_cg.penalty": 1e-3,
        "ridge_cg.shrinkage": 0.03,
        "ridge_cg.encoding": "float16",
        "ridge_cg.cache": True,
        "ridge_cg.microbatch": 2,
        "ridge_cg.calibrate": False,
    }


def _two_kinds(kernels: int, network: int) -> dict[str, dict[str, Any]]:
    name = f"Conjugate gradients, {kernels:,} kernels and a network of {network:,}"
    overrides = {
        "algorithm": "patches+ridge_cg",
        "model.kernels": kernels,
        "model.network": network,
    }
    return {name: overrides}


def _means(kernels: int, directions: int | str, encoding: str) -> dict[str, Any]:
    return {
        "algorithm": "patches+gaussian_head",
        "model.kernels": kernels,
        "model.network": "none",
        "gaussian_head.encoding": encoding,
        "gaussian_head.sketch": directions,
        "gaussian_head.calibrate": False,
    }
