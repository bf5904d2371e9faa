"""A warm-up that ends by itself: where it does, what it asks, and that it can be resumed."""

import jax
import numpy as np
import pytest

import zo_fl
from tests import tiny
from tests.test_run import Killed, killing
from zo_fl import api
from zo_fl.engine.algorithm import Stop
from zo_fl.engine.fields import ConfigError
from zo_fl.host.metrics import read_metrics
from zo_fl.wrap import stop

WATCHED = {
    "data__alpha": 0.3,
    "warmup__num_rounds": 40,
    "zo__num_rounds": 2,
    "run__rounds_per_jit": 3,
    "run__eval_every": 50,
}


def rows_of(path):
    return [row | {"seconds": 0} for row in read_metrics(path / "metrics.jsonl")]


def check_answers(rows, asked):
    """Checks where a warm-up ended and what it asked, and returns how long it was."""
    checks = {row["round"]: row["check_accuracy"] for row in rows if "check_accuracy" in row}
    pivot = sum(row["phase"] == "warmup" for row in rows)
    best = max(checks, key=checks.get)  # the first of equals
    assert list(checks) == list(range(stop.EVERY, pivot + 1, stop.EVERY))
    assert pivot == best + stop.PATIENCE * stop.EVERY < 40
    # An integer of each that is asked, in the round that the question follows.
    sent = np.diff([0, *(row["uplink_bytes"] for row in rows[:pivot])])
    assert set(sent[1::2] - sent[0]) == {4 * asked} and len(set(sent[0::2])) == 1
    return pivot


@pytest.mark.slow
def test_a_warm_up_ends_where_the_answers_of_its_tier_stop_rising_also_in_three_parts(tmp_path):
    whole, warmup, after = (tmp_path / name for name in ("whole", "warmup", "after"))
    config = tiny.config("zowarmup", **WATCHED, warmup__stop="plateau")
    summary = api.run(config, whole, quiet=True)
    rows = rows_of(whole)
    pivot = check_answers(rows, 4)
    assert summary["rounds"] == pivot + 2 and rows[-1]["phase"] == "zo"
    assert summary["pivot_accuracy"] == rows[pivot - 1]["test_accuracy"]

    # A warm-up that is killed before its last question, its end, and what goes on from there.
    alone = config | {"algorithm": "fedavg"}
    with pytest.raises(Killed):
        api.run(alone, warmup, quiet=True, on_round=killing(pivot - 1))
    api.run(alone, warmup, quiet=True)
    with pytest.raises(Killed):
        api.run(config, after, warm_start=warmup, quiet=True, on_round=killing(pivot + 1))
    parts = api.run(config, after, quiet=True)
    took = {"wall_seconds": 0, "seconds": 0}
    assert parts | took == summary | took and rows_of(after) == rows
    models = [zo_fl.load(path).params for path in (whole, after)]
    jax.tree.map(np.testing.assert_array_equal, *models)
    # A longer one might end elsewhere.
    longer = tiny.config("zowarmup", **WATCHED | {"warmup__num_rounds": 50}, warmup__stop="plateau")
    with pytest.raises(ConfigError, match="warmup.num_rounds=40"):
        api.run(longer, tmp_path / "longer", warm_start=warmup, quiet=True)


@pytest.mark.slow
def test_where_everyone_s_answers_end_it_the_last_phase_takes_the_rounds_that_are_handed_over(
    tmp_path,
):
    stops = dict(warmup__stop="population", warmup__hand_over=True)
    summary = api.run(tiny.config("zowarmup", **WATCHED, **stops), tmp_path, quiet=True)
    rows = rows_of(tmp_path)
    pivot = check_answers(rows, 8)
    assert summary["rounds"] == len(rows) == 42
    assert all(row["phase"] == "zo" for row in rows[pivot:])


def test_a_rule_that_is_added_is_allowed_and_ends_the_phase_as_it_says(monkeypatch):
    with pytest.raises(ConfigError, match="allowed: fixed, plateau, population"):
        tiny.build("fedavg", warmup__stop="patient")
    monkeypatch.setitem(stop.STOPS, "patient", lambda tiers: Stop(3, 7, "high"))
    (phase,) = tiny.build("fedavg", warmup__stop="patient", warmup__hand_over=True).phases
    assert phase.stop == Stop(3, 7, "high", hands_over=True)


def test_without_validation_examples_there_is_nothing_to_ask_about():
    with pytest.raises(ConfigError, match="config.warmup.stop='plateau' asks about validation"):
        tiny.build("fedavg", warmup__stop="plateau", data__val_fraction=0.0)
