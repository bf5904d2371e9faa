"""Folders of sweeps whose results are made up, for the commands that show results."""

import copy
import functools
import json

from experiments.analysis import found
from experiments.jobs import plan, record
from tests import tiny
from zo_fl.config.sweeps import Point, Sweep

PAPER = {  # the setting of its Table 2, 10/90
    "data.name": "cifar10",
    "data.num_clients": 50,
    "data.alpha": 0.1,
    "data.high_fraction": 0.1,
    "model.name": "resnet18",
    "model.norm": "batch",
    "warmup.num_rounds": 200,
    "warmup.local_epochs": 3,
    "warmup.batch_size": 64,
    "zo.num_rounds": 300,
    "zo.eps": 1e-4,
}
PROVENANCE = {
    "started": "2030-01-02T03:04:05+00:00",
    "versions": {"python": "3.11", "jax": "0.10"},
    "git": {"revision": "abcdef0123456789", "dirty": False},
    "devices": {"platform": "cpu", "kind": "cpu", "count": 1},
}


def accuracy(row, column, seed):
    """Returns an accuracy that differs between points and seeds."""
    return 0.4 + 0.01 * len(row) + 0.001 * len(column) + 0.02 * seed


def make(root, rows=("High Res Only", "ZOWarmUp"), columns=("10/90",), seeds=(0, 1, 2), **changes):
    """Writes a sweep of finished runs and returns the folder of each (row, column, seed).

    ``changes`` are the sweep's ``name``, ``table``, ``reference``, ``quantity``, ``axis``,
    ``title``, ``accuracy(row, column, seed)``, and ``config``, dotted fields.
    """
    given = {"name": "s", "table": "Table 2", "reference": "High Res Only", "quantity": "accuracy"}
    given |= {"title": "A title", "axis": "", "accuracy": accuracy, "config": {}} | changes
    points = [Point(row, column, {}) for row in rows for column in columns]
    fields = ("title", "table", "reference", "quantity", "axis")
    sweep = Sweep(points=points, **{name: given[name] for name in fields})
    command = "zo-fl sweep --sweep=<s>"
    content = record.make(sweep, "configs/quickstart.py", {}, command, seeds)
    record.write(root / given["name"] / "sweep.json", content)
    folders = {}
    for point in points:
        for seed in seeds:
            folder = root / given["name"] / plan.point_folder(point) / str(seed)
            value = given["accuracy"](point.row, point.column, seed)
            high_res_only = point.row == "High Res Only"
            changes = ({"algorithm": "fedavg"} if high_res_only else {}) | given["config"]
            finish(folder, value, config(changes, seed), pivot=not high_res_only)
            folders[point.row, point.column, seed] = folder
    return folders


def config(changes, seed=0):
    """Returns a resolved config with dotted fields changed."""
    made = copy.deepcopy(tiny.config(seed=seed, model__width=1.0))
    for field, value in changes.items():
        *blocks, name = field.split(".")
        functools.reduce(dict.__getitem__, blocks, made)[name] = value
    return made


def finish(folder, value, resolved, pivot=True):
    """Writes the folder of a finished run with a final accuracy."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = {
        "rounds": 4,
        "diverged_round": None,
        "pivot_accuracy": value - 0.05 if pivot else None,
        "final_accuracy": value,
        "delta_lo": 0.05 if pivot else None,
        "uplink_bytes": 1_500_000,
        "downlink_bytes": 2_500_000,
        "forward_passes": 1234,
        "low_uplink_bytes": 1200,
        "low_passes": 600,
        "wall_seconds": 61.0,
    }
    rows = [_row(round_idx, value) for round_idx in (1, 2, 3, 4)]
    write(folder / "summary.json", summary)
    write(folder / "config.json", {"config": resolved, "provenance": PROVENANCE})
    write(folder / "partition.json", {"num_classes": 10})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def only(root):
    """Returns the one sweep in a folder."""
    (sweep,) = found.read(root).sweeps
    return sweep


def write(path, content):
    path.write_text(json.dumps(content))


def _row(round_idx, value):
    row = {"round": round_idx, "phase": "warmup" if round_idx < 3 else "zo", "train_loss": 1.0}
    seconds = 0.5 if round_idx < 3 else 0.25
    return row | {"seconds": seconds, "test_accuracy": value - 0.01 * (4 - round_idx)}
