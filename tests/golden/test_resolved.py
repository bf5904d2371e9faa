"""Every config and sweep means what it meant at 4ea9af5, fields renamed or taken away apart.

``resolved.json.gz`` holds, for each config and each point of each sweep on the quickstart, the
fields that its method reads, by dotted names.
"""

import functools
import gzip
import json
from pathlib import Path

import pytest

from zo_fl import config as configs

STORED = json.loads(gzip.decompress(Path(__file__).with_name("resolved.json.gz").read_bytes()))


# Blocks of methods that hold what their source sets otherwise: all else they read from ``zo``.
OF_ZO = ("decomfl", "mezo", "fedkseed", "fedzo", "baffle")
RENAMED = {
    "warmup.server.name": "warmup.server",
    "zo.server.name": "zo.server",
}
# Fields that are gone, and the one value that they had in every config and sweep.
GONE = {
    "data.shards_per_client": 2,
    "model.conv": "auto",
    "model.patch_size": 6,
    "faults.straggler": 0.0,
    "faults.strength": 1.0,
    "robust.max_norm": 0.0,
    "robust.tolerant": False,
    "run.device": "auto",
    "run.unroll": 1,
    "run.eval_precision": "float32",
    **{f"{block}.server.b1": 0.9 for block in ("warmup", "zo", "head_zo", "head_sgd")},
    **{f"{block}.server.b2": 0.999 for block in ("warmup", "zo", "head_zo", "head_sgd")},
    **{f"{block}.server.eps": 1e-8 for block in ("warmup", "zo", "head_zo", "head_sgd")},
    **{
        f"{block}.server.{name}": value
        for block in ("warmup", "zo", "head_zo", "head_sgd")
        for name, value in (
            ("initial_accumulator", 0.0),
            ("bias_correction", True),
            ("weight_decay", 0.0),
            ("scale", "none"),
        )
    },
    "head_zo.server.name": "sgd",
    "head_sgd.server.name": "sgd",
    "head_sgd.server_lr": 1.0,
    "warmup.check_every": 2,
    "warmup.patience": 2,
    "warmup.loss": "ce",
    "zo.weights": "examples",
    "zo.aggregation": "mean",
    "zo.by_layer": False,
    "zo.augment": False,
    "zo.loss": "ce",
    "heterofl.loss": "masked",
    "heterofl.clip_norm": 1.0,
    "ridge.basis": "principal",
    "ridge.mirror": False,
    "ridge_cg.mirror": False,
    "ridge_cg.patience": 2,
    "ridge_cg.preconditioner": "high",
    "gaussian_head.basis": "principal",
    "gaussian_head.mirror": False,
    "gaussian_head.covariance": "high",
    "gaussian_head.shrinkages": [0.001, 0.01, 0.03, 0.1, 0.3, 1.0],
}
# Fields that came since, and what they are in everything that is older.
NEW = {"model.width": 1.0}
# Rows of sweeps that are gone: what they varied brought nothing.
DROPPED = {
    "zeroth_order": (
        rows := ("Orthogonal directions", "A layer at a time", "Trust ratios", "Combination")
    ),
    "zeroth_order_rates": rows,
    "zeroth_order_params": ("A layer at a time",),
}
# What the methods themselves set now, in place of fields of their blocks.
FIXED = {
    "decomfl": ("distribution", "tau", "local_lr"),
    "mezo": ("distribution", "tau", "num_directions"),
    "fedkseed": ("distribution", "tau", "weights"),
    "fedzo": ("estimator", "lr", "local_lr"),
    "baffle": ("estimator", "distribution", "tau", "clip", "ema", "server"),
}


def as_of_now(fields, known):
    """Returns stored fields by the names of now, ``known``, without those that are gone."""
    found = {}
    for field, value in fields.items():
        block, _, name = field.partition(".")
        if field == "zo.server.scale" and value == "norm":
            found["zo.server"] = "normalized"
        elif field in GONE and field not in known:
            assert value == GONE[field], field
        elif RENAMED.get(field, field) not in found:
            found[RENAMED.get(field, field)] = value
    return found


def known_by(stored, found):
    """Returns stored fields and what was found, as far as both say the same thing.

    A method's own block has fewer fields now; what it left to ``zo`` has the value that ``zo`` has.
    """
    stored, found = as_of_now(stored, found), dict(found)
    for field in [f for f in stored if f.partition(".")[0] in OF_ZO and f not in found]:
        block, _, name = field.partition(".")
        value = stored.pop(field)
        if name.partition(".")[0] not in (
            *FIXED[block],
            "server",
            "weights",
            "by_layer",
            "augment",
            "loss",
        ):
            assert found[f"zo.{name}"] == value, field
    for field in [f for f in found if f.startswith("zo.") and f not in stored]:
        del found[field]
    for field, value in NEW.items():
        assert found.pop(field) == value, field
    return stored, found


def resolved(config, overrides=None):
    found = configs.identity(configs.changed(config, overrides or {}))
    return json.loads(json.dumps(found))


@functools.cache
def quickstart():
    return configs.resolve(configs.load("quickstart"))


@pytest.mark.parametrize("name", STORED["configs"])
def test_a_config_resolves_to_what_it_did(name):
    stored, found = known_by(STORED["configs"][name], resolved(configs.resolve(configs.load(name))))
    assert found == stored


@pytest.mark.parametrize("name", STORED["sweeps"])
def test_the_points_of_a_sweep_resolve_to_what_they_did(name):
    path = configs.find(name, "sweep", "sweeps")
    sweep = configs.call(path, "get_sweep", configs.load("quickstart"))
    found = {
        f"{point.row} | {point.column}": resolved(quickstart(), point.overrides)
        for point in sweep.points
    }
    dropped = DROPPED.get(name, ())
    stored = {
        cell: fields
        for cell, fields in STORED["sweeps"][name].items()
        if not cell.startswith(dropped or ("\n",))
    }
    assert found.keys() == stored.keys()
    for cell, fields in stored.items():
        then, now = known_by(fields, found[cell])
        assert now == then, cell
