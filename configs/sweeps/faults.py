"""A federation that misbehaves: clients that stay silent, send NaN, or lie, at growing rates.

For FedAvg of everyone, for ZOWarmUp and for the closed-form head after the warm-up, in all of their
rounds. Liars send the opposite of what they found; against them also with messages of at most the
cohort's median length, and with a trimmed mean where updates can be compared by coordinate. Expect
silence and NaN to cost what fewer clients cost, and liars to hurt most where they are many of the
few who take part, as in the warm-up.

    python -m experiments.sweep --config=configs/quickstart.py \
        --sweep=configs/sweeps/faults.py --seeds=3 --workdir=R
    python -m experiments.plots --runs=R
"""

from typing import Any

from ml_collections import ConfigDict

from zo_fl.config.sweeps import Point, Sweep

# Few examples want larger penalties than whole data sets.
_RIDGE = {"ridge.penalties": (1e-2, 3e-2, 1e-1, 3e-1, 1.0)}
METHODS: dict[str, dict[str, Any]] = {
    "FedAvg of everyone": {"algorithm": "fedavg_all"},
    "ZOWarmUp": {"algorithm": "zowarmup"},
    "Warm-up, ridge": {"algorithm": "fedavg+ridge", **_RIDGE},
}
RATES = {"dropout": (0.1, 0.3, 0.5), "nan": (0.01, 0.1, 0.3), "byzantine": (0.1, 0.2, 0.3)}
SHOWN = {"dropout": "silent", "nan": "NaN", "byzantine": "liars"}
RULES = {"clip": "clipped", "trimmed_mean": "trimmed"}
_TRIM = 0.3  # at each end: as many as there are liars at most


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns a column a fault and rate, a row a method and rule."""
    del config
    points = []
    for method, fields in METHODS.items():
        points.append(Point(method, "0 %", fields))
        for fault, rates in RATES.items():
            for rate in rates:
                column = f"{SHOWN[fault]} {100 * rate:g} %"
                points.append(Point(method, column, fields | {f"faults.{fault}": rate}))
    for method, fields in METHODS.items():
        for rule, shown in RULES.items():
            if rule == "trimmed_mean" and method != "FedAvg of everyone":
                continue  # scalars of directions of one's own, and plain sums, do not compare
            defended = fields | {"robust.rule": rule, "robust.trim": _TRIM}
            row = f"{method}, {shown}"
            points.append(Point(row, f"{SHOWN['byzantine']} 0 %", defended))
            for rate in RATES["byzantine"]:
                column = f"{SHOWN['byzantine']} {100 * rate:g} %"
                points.append(Point(row, column, defended | {"faults.byzantine": rate}))
    return Sweep("A federation that misbehaves", "", points, axis="share of the clients, %")
