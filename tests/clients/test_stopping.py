"""A warm-up that ends by itself: where it does, what it asks, and that it can be resumed."""

import jax
import numpy as np
import pytest

import zo_fl
from tests import tiny
from zo_fl import train
from zo_fl.core.errors import ConfigError
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


@pytest.mark.slow
@pytest.mark.parametrize("stop, asked", (("plateau", 4), ("population", 8)))
def test_a_warm_up_ends_where_the_answers_stop_rising(stop, asked, tmp_path):
    config = tiny.config("zowarmup", **WATCHED, warmup__stop=stop)
    summary = train.run(config, tmp_path / "whole", quiet=True)
    rows = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    checks = {row["round"]: row["check_accuracy"] for row in rows if "check_accuracy" in row}
    pivot = sum(row["phase"] == "warmup" for row in rows)
    best = max(checks, key=checks.get)  # the first of equals
    assert list(checks) == list(range(2, pivot + 1, 2)) and pivot == best + 4 < 60
    assert summary["rounds"] == pivot + 2 and rows[-1]["phase"] == "zo"
    assert summary["pivot_accuracy"] == rows[pivot - 1]["test_accuracy"]
    # An integer of each that is asked, in the round that the question follows.
    sent = np.diff([0, *(row["uplink_bytes"] for row in rows[:pivot])])
    assert set(sent[1::2] - sent[0]) == {4 * asked} and len(set(sent[0::2])) == 1

    stops = []

    def interrupt(row):
        if row["round"] == pivot - 1 and not stops:
            stops.append(row)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.run(config, tmp_path / "parts", quiet=True, on_round=interrupt)
    parts = train.run(config, tmp_path / "parts", quiet=True)
    assert {**parts, "wall_seconds": 0} == {**summary, "wall_seconds": 0}
    assert strip(read_metrics(tmp_path / "parts" / "metrics.jsonl")) == strip(rows)
    warmup = tmp_path / "warmup"
    train.run(config | {"algorithm": "fedavg"}, warmup, quiet=True)
    after = train.run(config, tmp_path / "after", warm_start=warmup, quiet=True)
    assert {**after, "wall_seconds": 0} == {**summary, "wall_seconds": 0}
    models = [zo_fl.load(tmp_path / name).params for name in ("whole", "after")]
    for one, other in zip(*map(jax.tree.leaves, models), strict=True):
        np.testing.assert_array_equal(one, other)
    if stop == "plateau":  # a longer one might end elsewhere
        longer = tiny.config("zowarmup", **WATCHED | {"warmup__num_rounds": 70}, warmup__stop=stop)
        with pytest.raises(ConfigError, match="warmup.num_rounds=60"):
            train.run(longer, tmp_path / "longer", warm_start=warmup, quiet=True)


def test_without_validation_examples_there_is_nothing_to_ask_about():
    with pytest.raises(ConfigError, match="config.warmup.stop='plateau' asks about validation"):
        tiny.build("fedavg", warmup__stop="plateau", data__val_fraction=0.0)
