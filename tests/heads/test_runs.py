"""Head methods in whole runs: streamed, stopped early, after and before other methods."""

import chex
import pytest

import zo_fl
from tests import tiny
from zo_fl import api
from zo_fl.host.metrics import read_metrics

pytestmark = pytest.mark.slow

ONE = {"ridge__penalties": (0.05,), "ridge__calibrate": False}


def test_streamed_sums_are_those_of_data_on_the_device(tmp_path):
    whole = api.run(tiny.config("ridge"), tmp_path / "whole", quiet=True)
    streamed = api.run(tiny.config("ridge", run__data="stream"), tmp_path / "streamed", quiet=True)
    assert whole["final_accuracy"] > 0.3
    for name in ("final_accuracy", "phases", "low_uplink_bytes", "uplink_bytes"):
        assert streamed[name] == whole[name]


def test_conjugate_gradients_end_where_the_count_stops_rising(tmp_path):
    changes = {"num_rounds": 40, "check_every": 3, "calibrate": True, "shrinkage": 1.0}
    config = tiny.config("ridge_cg", **{f"ridge_cg__{key}": v for key, v in changes.items()})
    summary = api.run(config, tmp_path, quiet=True)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    # A round of moments, one of sums, iterations, one of temperatures.
    checks = {row["round"] - 2: row["check_accuracy"] for row in rows if "check_accuracy" in row}
    iterations = summary["rounds"] - 3
    assert list(checks) == list(range(3, iterations + 1, 3)) and iterations < 40
    best = max(checks, key=checks.get)  # the first of equals
    assert iterations == best + 6
    (last,) = [row for row in rows if row["round"] == summary["rounds"] - 1]
    assert last["val_accuracy"] == pytest.approx(checks[best], abs=1e-6)


def test_methods_follow_each_other(tmp_path):
    name = "fedavg+ridge_cg+head_sgd+zo"
    config = tiny.config(name, **ONE, data__alpha=100.0, zo__lr=1e-5, warmup__lr=1e-3)
    summary = api.run(config, tmp_path, quiet=True)
    assert summary["phases"][0]["phase"] == "warmup"
    assert summary["final_accuracy"] == summary["phases"][-1]["test_accuracy"] > 0.3
    assert summary["low_uplink_bytes"] > 0 and summary["low_passes"] > 0


def test_a_run_that_only_prepares_is_not_evaluated_and_others_start_from_it(tmp_path):
    prepared = api.run(tiny.config("patches"), tmp_path / "patches", quiet=True)
    assert prepared["rounds"] == 1 and prepared["final_accuracy"] is None
    config = tiny.config("patches+ridge", **ONE)
    alone = api.run(config, tmp_path / "alone", quiet=True)
    after = api.run(config, tmp_path / "after", warm_start=tmp_path / "patches", quiet=True)
    for name in ("pivot_accuracy", "final_accuracy", "phases", "low_uplink_bytes", "uplink_bytes"):
        assert after[name] == alone[name]


def test_no_rounds_of_head_zo_leave_the_paper_s_method_as_it_is(tmp_path):
    without = tiny.config("fedavg+head_zo+zo", head_zo__num_rounds=0)
    models = []
    for name, config in (("without", without), ("printed", tiny.config("zowarmup"))):
        api.run(config, tmp_path / name, quiet=True)
        models.append(zo_fl.load(tmp_path / name).params)
    chex.assert_trees_all_equal(*models)
