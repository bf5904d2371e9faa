"""Head methods in whole runs: streamed, stopped early, after and before other methods."""

import chex
import pytest

import zo_fl
from tests import tiny
from zo_fl import api
from zo_fl.host.metrics import read_metrics

pytestmark = pytest.mark.slow


def test_streamed_sums_are_those_of_data_on_the_device(tmp_path):
    whole, streamed = (
        api.run(
            tiny.config("ridge", ridge__calibrate=False, run__data=data),
            tmp_path / data,
            quiet=True,
        )
        for data in ("device", "stream")
    )
    assert whole["final_accuracy"] > 0.3
    for name in ("final_accuracy", "phases", "low_uplink_bytes", "uplink_bytes"):
        assert streamed[name] == whole[name]


@pytest.mark.nightly
def test_between_others_conjugate_gradients_end_where_the_count_stops_rising(tmp_path):
    changes = {"num_rounds": 40, "check_every": 3, "calibrate": True, "shrinkage": 1.0}
    changes = {f"ridge_cg__{key}": v for key, v in changes.items()}
    config = tiny.config("fedavg+ridge_cg+zo", **changes, zo__lr=1e-5, warmup__lr=1e-3)
    summary = api.run(config, tmp_path, quiet=True)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    iterations = [row for row in rows if row["phase"] == "ridge_cg iterations"]
    checks = {
        i: row["check_accuracy"] for i, row in enumerate(iterations, 1) if "check_accuracy" in row
    }
    assert list(checks) == list(range(3, len(iterations) + 1, 3)) and len(iterations) < 40
    best = max(checks, key=checks.get)  # the first of equals
    assert len(iterations) == best + 6
    assert iterations[-1]["val_accuracy"] == pytest.approx(checks[best], abs=1e-6)
    assert summary["phases"][0]["phase"] == "warmup"
    assert summary["final_accuracy"] == summary["phases"][-1]["test_accuracy"] > 0.3


def test_a_run_that_only_prepares_is_not_evaluated_and_others_start_from_it(tmp_path):
    prepared = api.run(tiny.config("patches"), tmp_path / "patches", quiet=True)
    assert prepared["rounds"] == 13 and prepared["final_accuracy"] is None
    config = tiny.config(
        "patches+head_zo+ridge",
        head_zo__num_rounds=0,  # as if it were not there
        ridge__penalties=(0.05,),
        ridge__calibrate=False,
    )
    after = api.run(config, tmp_path / "after", warm_start=tmp_path / "patches", quiet=True)
    assert after["rounds"] == 14 and after["final_accuracy"] > 0.3
    filters = [zo_fl.load(tmp_path / name).params["filters"] for name in ("patches", "after")]
    chex.assert_trees_all_equal(*filters)


@pytest.mark.parametrize("method", ("ridge", "gaussian_head", "ridge_cg", "head_zo"))
def test_no_rounds_of_a_method_are_none_of_its_neighbours_either(method):
    *phases, last = tiny.build(f"{method}+zo", **{f"{method}__num_rounds": 0}).phases
    assert not any(phase.num_rounds for phase in phases) and last.num_rounds == tiny.ROUNDS
