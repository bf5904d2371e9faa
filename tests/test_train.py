"""Whole runs: what they leave behind, that they resume, and how they fail."""

import json
import math
import os
import re
import shutil
import signal

import jax
import numpy as np
import pytest

import zo_fl
from tests import tiny
from zo_fl import train
from zo_fl.core.errors import ConfigError
from zo_fl.host import files, run_folder
from zo_fl.host.checkpoint import Checkpoints
from zo_fl.host.divergence import divergence_in
from zo_fl.host.files import StorageError
from zo_fl.host.metrics import read_metrics

pytestmark = pytest.mark.slow

OVERRIDES = dict(
    warmup__num_rounds=3,
    zo__num_rounds=4,
    run__rounds_per_jit=2,
    run__eval_every=2,
    run__checkpoint_every=3,
)


def rows_of(path):
    rows = read_metrics(path / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def final_state(path):
    """All arrays of the last checkpoint."""
    built = tiny.build()
    template = tiny.start(built, built.phases[-1])
    _, state, _ = tiny.latest(path, template)
    return jax.tree.leaves(state)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("finished")
    return path, train.run(tiny.config(**OVERRIDES), path, quiet=True)


def test_a_run_leaves_what_the_readme_promises(finished):
    path, summary = finished
    assert {p.name for p in path.iterdir()} >= {
        "config.json",
        "partition.json",
        "metrics.jsonl",
        "summary.json",
        "curves.png",
        "checkpoints",
        "tb",
    }
    assert json.loads((path / "summary.json").read_text()) == summary
    config = json.loads((path / "config.json").read_text())
    assert config["config"]["zo"]["num_rounds"] == 4 and config["provenance"]["versions"]["jax"]


def test_every_round_has_a_row_and_evaluation_rounds_have_accuracies(finished):
    rows = rows_of(finished[0])
    assert [row["round"] for row in rows] == list(range(1, 8))
    assert [row["phase"] for row in rows] == ["warmup"] * 3 + ["zo"] * 4
    evaluated = [row["round"] for row in rows if "test_accuracy" in row]
    assert evaluated == [2, 3, 4, 6, 7]  # every second, and the end of each phase
    for row in rows:
        assert row["train_loss"] > 0 and row["update_norm"] > 0
    assert rows[-1]["uplink_bytes"] > rows[-2]["uplink_bytes"]


def test_the_summary_agrees_with_the_rows(finished):
    path, summary = finished
    rows = rows_of(path)
    assert summary["pivot_accuracy"] == rows[2]["test_accuracy"]
    assert summary["final_accuracy"] == rows[-1]["test_accuracy"]
    assert summary["delta_lo"] == rows[-1]["test_accuracy"] - rows[2]["test_accuracy"]
    accuracies = [row["val_accuracy"] for row in rows if "val_accuracy" in row]
    assert summary["best_val_accuracy"] == max(accuracies)
    assert summary["uplink_bytes"] == rows[-1]["uplink_bytes"]
    examples = 8 * 225
    assert summary["forward_passes"] == 3 * examples // 2 + 4 * 6 * examples


@pytest.mark.parametrize("after", (1, 3, 6))
def test_a_run_stopped_anywhere_and_resumed_ends_bit_identical(
    finished, tmp_path, monkeypatch, after
):
    path, _ = finished
    write = run_folder.MetricsWriter.write

    def interrupting(self, rows):
        write(self, rows)
        if rows[-1]["round"] >= after:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(run_folder.MetricsWriter, "write", interrupting)
    with pytest.raises(zo_fl.Interrupted):
        train.run(tiny.config(**OVERRIDES), tmp_path, quiet=True)
    monkeypatch.undo()
    train.run(tiny.config(**OVERRIDES), tmp_path, quiet=True)
    assert rows_of(tmp_path) == rows_of(path)
    for got, expected in zip(final_state(tmp_path), final_state(path), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_run_killed_between_checkpoints_loses_only_the_rounds_since(
    finished, tmp_path, monkeypatch
):
    path, _ = finished
    write = run_folder.MetricsWriter.write

    class Killed(BaseException):
        pass

    def killing(self, rows):
        write(self, rows)
        if rows[-1]["round"] == 5:  # after round 3's checkpoint; rows 4 and 5 are on disk
            raise Killed

    config = tiny.config(**OVERRIDES | {"run__eval_every": 5})
    monkeypatch.setattr(run_folder.MetricsWriter, "write", killing)
    with pytest.raises(Killed):
        train.run(config, tmp_path, quiet=True)
    monkeypatch.undo()
    assert len(rows_of(tmp_path)) == 5
    train.run(config, tmp_path, quiet=True)
    for got, expected in zip(final_state(tmp_path), final_state(path), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert [row["round"] for row in rows_of(tmp_path)] == list(range(1, 8))


def test_a_finished_run_is_only_reported(finished):
    path, summary = finished
    before = (path / "metrics.jsonl").stat().st_mtime_ns
    assert train.run(tiny.config(**OVERRIDES), path, quiet=True) == summary
    assert (path / "metrics.jsonl").stat().st_mtime_ns == before


def test_another_config_does_not_touch_a_run_s_folder(finished):
    path, _ = finished
    with pytest.raises(ConfigError, match=r"config\.zo\.lr=0\.001, given 0\.5.*--workdir"):
        train.run(tiny.config(**OVERRIDES | {"zo__lr": 0.5}), path, quiet=True)


def test_without_validation_examples_there_is_no_best_round(tmp_path):
    summary = train.run(tiny.config("ridge_cg", data__val_fraction=0.0), tmp_path, quiet=True)
    assert summary["best_val_accuracy"] is None and summary["accuracy_at_best_val"] is None
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_high_res_only_is_phase_one_alone(tmp_path, finished):
    summary = train.run(tiny.config("fedavg", **OVERRIDES), tmp_path, quiet=True)
    assert summary["pivot_accuracy"] is None and summary["delta_lo"] is None
    assert rows_of(tmp_path) == rows_of(finished[0])[:3]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_round(tmp_path):
    config = tiny.config(**OVERRIDES | {"warmup__lr": 1e30})
    summary = train.run(config, tmp_path, quiet=True)
    assert summary["diverged_round"] in (1, 2)
    assert rows_of(tmp_path)[-1]["round"] == 2
    assert re.match(
        r"round \d: what (client \d|\d clients, \d the first of them,) sent is not",
        summary["divergence"],
    )
    assert Checkpoints(tmp_path).latest_round() is None  # nothing of it is kept


def test_a_last_update_that_overflows_is_no_success(tmp_path):
    config = tiny.config("zo", zo__num_rounds=1, zo__lr=1e38)
    summary = train.run(config, tmp_path, quiet=True)
    assert summary["diverged_round"] == 1 and "update is not finite" in summary["divergence"]


def test_a_probe_that_overflows_alone_stops_nothing():
    row = {"round": 3, "train_loss": 1.0, "update_norm": 0.5}
    faults = {"bad_clients": 1.0, "first_bad_client": 4.0}
    assert divergence_in(row, faults) is None
    found = divergence_in(row | {"update_norm": math.inf}, faults)
    assert found is not None and found.why == "round 3: what client 4 sent is not finite"


def test_steps_too_small_for_the_precision_are_a_warning(tmp_path):
    summary = train.run(tiny.config("zo", zo__eps=1e-30), tmp_path, quiet=True)
    (warning,) = summary["warnings"]
    assert warning.startswith("round 1 (zo): every scalar of every client is exactly zero")
    assert summary["diverged_round"] is None


def test_a_folder_has_one_owner(tmp_path):
    config = tiny.config(**OVERRIDES)
    refused = []

    def another(row):
        if not refused:
            before = (tmp_path / "metrics.jsonl").read_bytes()
            with pytest.raises(ConfigError, match=rf"in use by process {os.getpid()} on .*started"):
                train.run(config, tmp_path, quiet=True)
            refused.append((tmp_path / "metrics.jsonl").read_bytes() == before)

    train.run(config, tmp_path, quiet=True, on_round=another)
    assert refused == [True]


def test_a_full_disk_is_one_line_and_with_space_again_the_run_goes_on(
    tmp_path, monkeypatch, finished
):
    usage = shutil.disk_usage(tmp_path)

    def fill(row):
        if row["round"] == 6:
            monkeypatch.setattr(files.shutil, "disk_usage", lambda place: usage._replace(free=7))

    with pytest.raises(StorageError) as caught:
        train.run(tiny.config(**OVERRIDES), tmp_path, quiet=True, on_round=fill)
    expected = (
        r"cannot write .*/rounds/6: No space left on device \(\d+ bytes to be written, 7 free\)"
    )
    assert re.fullmatch(expected, str(caught.value))
    monkeypatch.undo()
    assert Checkpoints(tmp_path).rounds() == [3]
    train.run(tiny.config(**OVERRIDES), tmp_path, quiet=True)
    assert rows_of(tmp_path) == rows_of(finished[0])


def test_what_a_run_goes_on_with_is_noted_if_it_is_not_what_it_began_with(tmp_path):
    config = tiny.config(**OVERRIDES)
    stop_after(config, tmp_path, 3)
    path = tmp_path / "config.json"
    begun = json.loads(path.read_text())
    stop_after(config, tmp_path, 3)
    assert json.loads(path.read_text()) == begun
    begun["provenance"]["versions"]["jax"] = "0.0.1"
    path.write_text(json.dumps(begun))
    train.run(config, tmp_path, quiet=True)
    (stretch,) = json.loads(path.read_text())["stretches"]
    assert stretch["after_round"] == 3 and stretch["versions"]["jax"] == jax.__version__


def stop_after(config, path, round_idx):
    """Runs until the checkpoint after a round, as if killed after it."""

    def stop(row):
        if row["round"] == round_idx + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.run(config, path, quiet=True, on_round=stop)


def test_bad_input_leaves_no_folder(tmp_path):
    for overrides in (
        {"run__eval_every": 0},
        {"run__num_devices": 99},
        {"run__device": "gpu"},
        {"run__clients_per_vmap": -1},
        {"run__unroll": 0},
        {"warmup__num_rounds": 0, "zo__num_rounds": 0},
        {"algorithm": "fedsgd"},
        {"data__high_fraction": 0.0},
    ):
        with pytest.raises(ConfigError) as caught:
            train.run(tiny.config(**overrides), tmp_path / "run", quiet=True)
        assert "\n" not in str(caught.value) and "config." in str(caught.value), overrides
        assert not (tmp_path / "run").exists(), overrides


def test_a_warm_start_ends_bit_identical_to_a_run_that_warmed_up_itself(tmp_path):
    whole, donor, warm = (tmp_path / name for name in ("whole", "donor", "warm"))
    train.run(tiny.config(), whole, quiet=True)
    train.run(tiny.config("fedavg"), donor, quiet=True)
    train.run(tiny.config(), warm, warm_start=donor, quiet=True)
    assert rows_of(whole) == rows_of(warm)
    first, second = (json.loads((path / "summary.json").read_text()) for path in (whole, warm))
    assert {**first, "wall_seconds": 0} == {**second, "wall_seconds": 0}


def test_a_longer_warm_up_goes_on_from_a_shorter_one(tmp_path):
    whole, short, long = (tmp_path / name for name in ("whole", "short", "long"))
    train.run(tiny.config("fedavg", warmup__num_rounds=4), whole, quiet=True)
    train.run(tiny.config("fedavg"), short, quiet=True)
    train.run(tiny.config("fedavg", warmup__num_rounds=4), long, warm_start=short, quiet=True)
    assert [row["train_loss"] for row in rows_of(whole)] == [
        row["train_loss"] for row in rows_of(long)
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"seed": 1}, "config.seed=0, given 1"),
        ({"warmup__lr": 0.5}, "config.warmup.lr"),
        ({"faults__dropout": 0.3}, "config.faults.dropout=0.0, given 0.3"),
        ({"warmup__num_rounds": 1}, "has 2 rounds, config.warmup.num_rounds=1"),
        ({"algorithm": "zo"}, "config.algorithm='zo' does not begin with it"),
    ),
)
def test_another_warm_up_is_refused_in_one_line_and_nothing_is_written(tmp_path, changes, message):
    donor = tmp_path / "donor"
    train.run(tiny.config("fedavg"), donor, quiet=True)
    config = tiny.config(**{"algorithm": "zowarmup"} | changes)
    with pytest.raises(ConfigError, match=message):
        train.run(config, tmp_path / "run", warm_start=donor, quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_finished_warm_up_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no finished run; change --warm_start"):
        train.run(tiny.config(), tmp_path / "run", warm_start=tmp_path / "empty", quiet=True)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    path = tmp_path_factory.mktemp("seeds")
    return path, train.run_seeds(tiny.config(**OVERRIDES), path, 3, quiet=True)


def test_the_next_phase_starts_from_the_model_that_was_evaluated(tmp_path):
    # BAFFLE evaluates a moving average: with no step after it, the accuracy stays what it was.
    config = tiny.config("baffle+zo", baffle__ema=0.5, baffle__lr=0.05, zo__lr=0.0)
    summary = train.run(config, tmp_path, quiet=True)
    rows = rows_of(tmp_path)
    assert [row["phase"] for row in rows] == ["baffle"] * 2 + ["zo"] * 2
    assert rows[1]["test_loss"] == rows[3]["test_loss"] and summary["delta_lo"] == 0


class TestSeedsAsOneProgram:
    def test_each_seed_ends_as_it_does_alone(self, together, finished, tmp_path):
        path, summaries = together
        alone = {0: finished[0], 2: tmp_path}
        train.run(tiny.config(seed=2, **OVERRIDES), tmp_path, quiet=True)
        for seed, folder in alone.items():
            expected = json.loads((folder / "summary.json").read_text())
            assert summaries[seed].keys() == expected.keys()
            for got, row in zip(rows_of(path / str(seed)), rows_of(folder), strict=True):
                assert got.keys() == row.keys() and got["phase"] == row["phase"]
                for name in ("train_loss", "test_loss", "update_norm"):
                    if name in row:
                        np.testing.assert_allclose(got[name], row[name], rtol=1e-3)
                for name in ("round", "uplink_bytes", "downlink_bytes"):
                    assert got[name] == row[name]

    def test_seeds_differ_and_each_has_a_whole_folder(self, together):
        path, summaries = together
        assert len({summary["final_accuracy"] for summary in summaries}) > 1
        for seed in range(3):
            assert {p.name for p in (path / str(seed)).iterdir()} >= {
                "config.json",
                "metrics.jsonl",
                "summary.json",
                "checkpoints",
                "curves.png",
            }
            config = json.loads((path / str(seed) / "config.json").read_text())["config"]
            assert config["seed"] == seed

    def test_a_seed_that_ran_together_with_others_is_resumed_alone(self, together, tmp_path):
        path, summaries = together
        assert train.run(tiny.config(seed=1, **OVERRIDES), path / "1", quiet=True) == summaries[1]

    def test_stopped_and_resumed_they_end_bit_identical(self, together, tmp_path, monkeypatch):
        write, sent = run_folder.MetricsWriter.write, []

        def interrupting(self, rows):
            write(self, rows)
            if rows[-1]["round"] >= 4 and not sent:  # a second signal would act at once
                sent.append(True)
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(run_folder.MetricsWriter, "write", interrupting)
        with pytest.raises(zo_fl.Interrupted):
            train.run_seeds(tiny.config(**OVERRIDES), tmp_path, 3, quiet=True)
        monkeypatch.undo()
        train.run_seeds(tiny.config(**OVERRIDES), tmp_path, 3, quiet=True)
        for seed in map(str, range(3)):
            assert rows_of(tmp_path / seed) == rows_of(together[0] / seed)

    def test_no_seed_at_all_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match="--vmap_seeds"):
            train.run_seeds(tiny.config(), tmp_path / "run", 0, quiet=True)
        assert not (tmp_path / "run").exists()
