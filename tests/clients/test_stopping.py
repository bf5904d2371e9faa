"""A warm-up that ends by itself: where it does, what it asks, and that it can be resumed."""

import jax
import numpy as np
import pytest

import zo_fl
from tests import tiny
from zo_fl import api as train
from zo_fl.engine.errors import ConfigError
from zo_fl.host.metrics import read_metrics

WATCHED = {
    "data__alpha": 0.3,
    "warmup__num_rounds": 60,
    "warmup__check_every": 2,
    "warmup__patience": 2,
    "zo__num_rounds": 2,
    "run__eval_every": 50,
}


def strip(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def check_answers(rows, asked):
    """Checks where a warm-up ended and what it asked, and returns how long it was."""
    checks = {row["round"]: row["check_accuracy"] for row in rows if "check_accuracy" in row}
    pivot = sum(row["phase"] == "warmup" for row in rows)
    best = max(checks, key=checks.get)  # the first of equals
    assert list(checks) == list(range(2, pivot + 1, 2)) and pivot == best + 4 < 60
    # An integer of each that is asked, in the round that the question follows.
    sent = np.diff([0, *(row["uplink_bytes"] for row in rows[:pivot])])
    assert set(sent[1::2] - sent[0]) == {4 * asked} and len(set(sent[0::2])) == 1
    return pivot


@pytest.mark.slow
def test_a_warm_up_ends_where_the_answers_of_everyone_stop_rising(tmp_path):
    config = tiny.config("fedavg", **WATCHED, warmup__stop="population")
    summary = train.run(config, tmp_path, quiet=True)
    assert summary["rounds"] == check_answers(read_metrics(tmp_path / "metrics.jsonl"), 8)


@pytest.mark.slow
def test_a_warm_up_ends_where_the_answers_of_its_tier_stop_rising(tmp_path):
    whole, warmup, after = (tmp_path / name for name in ("whole", "warmup", "after"))
    config = tiny.config("zowarmup", **WATCHED, warmup__stop="plateau")
    summary = train.run(config, whole, quiet=True)
    rows = read_metrics(whole / "metrics.jsonl")
    pivot = check_answers(rows, 4)
    assert summary["rounds"] == pivot + 2 and rows[-1]["phase"] == "zo"
    assert summary["pivot_accuracy"] == rows[pivot - 1]["test_accuracy"]

    # The same in three parts: a warm-up that is stopped, its end, and what goes on from there.
    def interrupt(row):
        if row["round"] == pivot - 1:
            raise KeyboardInterrupt

    alone = config | {"algorithm": "fedavg"}
    with pytest.raises(KeyboardInterrupt):
        train.run(alone, warmup, quiet=True, on_round=interrupt)
    train.run(alone, warmup, quiet=True)
    parts = train.run(config, after, warm_start=warmup, quiet=True)
    assert {**parts, "wall_seconds": 0, "seconds": 0} == {
        **summary,
        "wall_seconds": 0,
        "seconds": 0,
    }
    assert strip(read_metrics(after / "metrics.jsonl")) == strip(rows)
    models = [zo_fl.load(path).params for path in (whole, after)]
    for one, other in zip(*map(jax.tree.leaves, models), strict=True):
        np.testing.assert_array_equal(one, other)
    # A longer one might end elsewhere.
    longer = tiny.config("zowarmup", **WATCHED | {"warmup__num_rounds": 70}, warmup__stop="plateau")
    with pytest.raises(ConfigError, match="warmup.num_rounds=60"):
        train.run(longer, tmp_path / "longer", warm_start=warmup, quiet=True)


def test_without_validation_examples_there_is_nothing_to_ask_about():
    with pytest.raises(ConfigError, match="config.warmup.stop='plateau' asks about validation"):
        tiny.build("fedavg", warmup__stop="plateau", data__val_fraction=0.0)
