"""Forward passes only: accuracy against the bytes that a low-resource client sends, once.

Class means (the discriminant) in int4 for a few hundred bytes to a few thousand, ridge regression
from there on; and what the high tier alone gets from the same features, without anyone's help.
Expect accuracy to rise with the bytes, and every row to beat the high tier alone.

    python -m experiments.sweep --config=configs/cifar10_10_90_forward.py \
        --sweep=configs/sweeps/forward_only.py --seeds=5 --workdir=R
    python -m experiments.pareto --runs=R
"""

from typing import Any

from ml_collections import ConfigDict

from zo_fl.config import sweeps
from zo_fl.config.sweeps import Point, Sweep

DIRECTIONS = (64, 128, 256, 1024)
ALONE = "High tier alone"


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns one column: the split of the config, its number of kernels and fractions of it."""
    most = config.model.kernels
    medium, small = max(most // 4, 2), max(most // 16, 2)
    rows: dict[str, dict[str, Any]] = {}
    for k in DIRECTIONS:
        if k <= 8 * medium:
            rows[f"Class means, {k} directions, int4"] = _means(medium, k, "int4")
    rows[f"Class means, {8 * medium:,} features"] = _means(medium, 0, "float32")
    rows[f"Ridge, {8 * small:,} features"] = _ridge(small, "float32")
    rows[f"Ridge, {8 * medium:,} features, int8"] = _ridge(medium, "int8")
    rows[f"Ridge, {8 * medium:,} features"] = _ridge(medium, "float32")
    for kernels in (small, medium):
        alone = _ridge(kernels, "float32") | {"ridge.tiers": "high"}
        rows[f"{ALONE}, {8 * kernels:,} features"] = alone
    rows[f"Ridge, {8 * most:,} features, int8"] = _ridge(most, "int8")
    column = sweeps.split_name(config.data.high_fraction)
    points = [Point(row, column, overrides) for row, overrides in rows.items()]
    reference = f"{ALONE}, {8 * medium:,} features"
    return Sweep("Forward passes only", "", points, reference=reference)


def _ridge(kernels: int, encoding: str) -> dict[str, Any]:
    return {
        "algorithm": "patches+ridge",
        "model.kernels": kernels,
        "ridge.encoding": encoding,
        "ridge.calibrate": False,
    }


def _means(kernels: int, directions: int, encoding: str) -> dict[str, Any]:
    return {
        "algorithm": "patches+gaussian_head",
        "model.kernels": kernels,
        "gaussian_head.encoding": encoding,
        "gaussian_head.sketch": directions,
        "gaussian_head.mirror": True,
        "gaussian_head.calibrate": False,
    }
