"""Whole runs: what they leave behind, that they resume, and how they fail."""

import json
import math
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

import zo_fl
from tests import tiny
from zo_fl import api as train
from zo_fl.engine.errors import ConfigError
from zo_fl.host import files, run_folder
from zo_fl.host.checkpoint import Checkpoints
from zo_fl.host.divergence import divergence_in
from zo_fl.host.files import StorageError
from zo_fl.host.metrics import read_metrics

pytestmark = pytest.mark.slow

# Not seed 0: of seeds run as one program, one that is not the first is compared with this run.
OVERRIDES = dict(
    seed=1,
    warmup__num_rounds=3,
    zo__num_rounds=4,
    run__rounds_per_jit=2,
    run__eval_every=2,
    run__checkpoint_every=3,
)
SEEDS = OVERRIDES | {"seed": 0}


def rows_of(path):
    rows = read_metrics(path / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def final_state(path):
    """All arrays of the last checkpoint."""
    built = tiny.build(**OVERRIDES)
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
    examples = 8 * 90
    assert summary["forward_passes"] == 3 * examples // 2 + 4 * 6 * examples


class Killed(BaseException):
    pass


class Stopped(NamedTuple):
    """A run that was stopped in many ways and always resumed.

    Attributes:
      path: its folder.
      rows: rounds that had a row when it was killed.
      full: what a full disk was reported as.
      kept: rounds with a checkpoint then.
      configs: ``config.json`` after the first stop, after the next, before the last, and at last.
    """

    path: Path
    rows: int
    full: str
    kept: list[int]
    configs: list[dict[str, Any]]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    path, configs = tmp_path_factory.mktemp("stopped"), []
    written, usage = run_folder.MetricsWriter.write, shutil.disk_usage(path)
    noted = path / "config.json"

    def run_until(expected, stop):
        """Runs until an error, by a function that gets each last round that has a row."""
        with pytest.MonkeyPatch.context() as patch:

            def write(self, rows):
                written(self, rows)
                stop(rows[-1]["round"], patch)

            patch.setattr(run_folder.MetricsWriter, "write", write)
            with pytest.raises(expected) as caught:
                train.run(tiny.config(**OVERRIDES), path, quiet=True)
        return str(caught.value)

    def interrupt_from(round_idx):
        def stop(done, patch):
            if done >= round_idx:
                os.kill(os.getpid(), signal.SIGINT)

        run_until(zo_fl.Interrupted, stop)
        configs.append(json.loads(noted.read_text()))

    def kill(done, patch):
        if done == 4:  # after round 3's checkpoint; row 4 is on disk
            raise Killed

    def fill(done, patch):
        if done == 6:
            patch.setattr(files.shutil, "disk_usage", lambda place: usage._replace(free=7))

    interrupt_from(1)
    interrupt_from(3)  # the end of a phase
    run_until(Killed, kill)
    rows = len(rows_of(path))
    full, kept = run_until(StorageError, fill), Checkpoints(path).rounds()
    interrupt_from(6)
    configs[-1]["provenance"]["versions"]["jax"] = "0.0.1"
    noted.write_text(json.dumps(configs[-1]))
    train.run(tiny.config(**OVERRIDES), path, quiet=True)
    configs.append(json.loads(noted.read_text()))
    return Stopped(path, rows, full, kept, configs)


def test_a_run_stopped_anywhere_and_resumed_ends_bit_identical(finished, stopped):
    assert rows_of(stopped.path) == rows_of(finished[0])
    for got, expected in zip(final_state(stopped.path), final_state(finished[0]), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_run_killed_between_checkpoints_loses_only_the_rounds_since(stopped):
    assert stopped.rows == 4
    assert [row["round"] for row in rows_of(stopped.path)] == list(range(1, 8))


def test_a_full_disk_is_one_line_and_with_space_again_the_run_goes_on(stopped):
    expected = (
        r"cannot write .*/rounds/6: No space left on device \(\d+ bytes to be written, 7 free\)"
    )
    assert re.fullmatch(expected, stopped.full) and stopped.kept == [2, 3]


def test_what_a_run_goes_on_with_is_noted_if_it_is_not_what_it_began_with(stopped):
    begun, again, _, ended = stopped.configs
    assert again == begun and "stretches" not in begun
    (stretch,) = ended["stretches"]
    assert stretch["after_round"] == 6 and stretch["versions"]["jax"] == jax.__version__


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
    summary = train.run(tiny.config("fedavg", data__val_fraction=0.0), tmp_path, quiet=True)
    assert summary["best_val_accuracy"] is None and summary["accuracy_at_best_val"] is None
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


@pytest.fixture(scope="module")
def warm_ups(tmp_path_factory):
    """Folders of a short warm-up and of a longer one; the latter's summary."""
    short, long = (tmp_path_factory.mktemp(name) for name in ("short", "long"))
    config = tiny.config("fedavg", **OVERRIDES | {"warmup__num_rounds": 2})
    train.run(config, short, quiet=True)
    return short, long, train.run(tiny.config("fedavg", **OVERRIDES), long, quiet=True)


def test_high_res_only_is_phase_one_alone(warm_ups, finished):
    _, path, summary = warm_ups
    assert summary["pivot_accuracy"] is None and summary["delta_lo"] is None
    assert rows_of(path) == rows_of(finished[0])[:3]


def test_a_longer_warm_up_goes_on_from_a_shorter_one(warm_ups, tmp_path):
    short, long, expected = warm_ups
    config = tiny.config("fedavg", **OVERRIDES)
    summary = train.run(config, tmp_path, warm_start=short, quiet=True)
    assert rows_of(tmp_path) == rows_of(long)
    assert summary["phases"] == expected["phases"] and len(summary["phases"]) == 1


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_round(tmp_path):
    # Several steps a client: the second one is of a model that is not finite.
    config = tiny.config(**OVERRIDES | {"warmup__lr": 1e30, "warmup__batch_size": 20})
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
    config = tiny.config("fedavg")
    refused = []

    def another(row):
        if not refused:
            before = (tmp_path / "metrics.jsonl").read_bytes()
            with pytest.raises(ConfigError, match=rf"in use by process {os.getpid()} on .*started"):
                train.run(config, tmp_path, quiet=True)
            refused.append((tmp_path / "metrics.jsonl").read_bytes() == before)

    train.run(config, tmp_path, quiet=True, on_round=another)
    assert refused == [True]


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


def test_a_warm_start_ends_bit_identical_to_a_run_that_warmed_up_itself(
    warm_ups, finished, tmp_path
):
    whole, summary = finished
    config = tiny.config(**OVERRIDES)
    warm = train.run(config, tmp_path, warm_start=warm_ups[1], quiet=True)
    assert rows_of(whole) == rows_of(tmp_path)
    assert {**summary, "wall_seconds": 0, "seconds": 0} == {**warm, "wall_seconds": 0, "seconds": 0}


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"seed": 0}, "config.seed=1, given 0"),
        ({"warmup__lr": 0.5}, "config.warmup.lr"),
        ({"faults__dropout": 0.3}, "config.faults.dropout=0.0, given 0.3"),
        ({"warmup__num_rounds": 1}, "has 2 rounds, config.warmup.num_rounds=1"),
        ({"algorithm": "zo"}, "config.algorithm='zo' does not begin with it"),
    ),
)
def test_another_warm_up_is_refused_in_one_line_and_nothing_is_written(
    warm_ups, tmp_path, changes, message
):
    config = tiny.config(**OVERRIDES | changes)
    with pytest.raises(ConfigError, match=message):
        train.run(config, tmp_path / "run", warm_start=warm_ups[0], quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_finished_warm_up_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no finished run; change --warm_start"):
        train.run(tiny.config(), tmp_path / "run", warm_start=tmp_path / "empty", quiet=True)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    path = tmp_path_factory.mktemp("seeds")
    return path, train.run_seeds(tiny.config(**SEEDS), path, 2, quiet=True)


def test_the_next_phase_starts_from_the_model_that_was_evaluated(tmp_path):
    # BAFFLE evaluates a moving average: with no step after it, the accuracy stays what it was.
    config = tiny.config("baffle+zo", baffle__ema=0.5, baffle__lr=0.05, zo__lr=0.0)
    summary = train.run(config, tmp_path, quiet=True)
    rows = rows_of(tmp_path)
    assert [row["phase"] for row in rows] == ["baffle"] * 2 + ["zo"] * 2
    assert rows[1]["test_loss"] == rows[3]["test_loss"] and summary["delta_lo"] == 0


class TestSeedsAsOneProgram:
    def test_each_seed_ends_as_it_does_alone(self, together, finished):
        path, summaries = together
        alone, expected = finished
        assert summaries[1].keys() == expected.keys()
        for got, row in zip(rows_of(path / "1"), rows_of(alone), strict=True):
            assert got.keys() == row.keys() and got["phase"] == row["phase"]
            for name in ("train_loss", "test_loss", "update_norm"):
                if name in row:
                    np.testing.assert_allclose(got[name], row[name], rtol=1e-3)
            for name in ("round", "uplink_bytes", "downlink_bytes"):
                assert got[name] == row[name]

    def test_seeds_differ_and_each_has_a_whole_folder(self, together):
        path, summaries = together
        assert len({summary["final_accuracy"] for summary in summaries}) > 1
        for seed in range(2):
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
        assert train.run(tiny.config(**OVERRIDES), path / "1", quiet=True) == summaries[1]

    def test_stopped_and_resumed_they_end_bit_identical(self, together, tmp_path, monkeypatch):
        write, sent = run_folder.MetricsWriter.write, []

        def interrupting(self, rows):
            write(self, rows)
            if rows[-1]["round"] >= 3 and not sent:  # a second signal would act at once
                sent.append(True)
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(run_folder.MetricsWriter, "write", interrupting)
        with pytest.raises(zo_fl.Interrupted):
            train.run_seeds(tiny.config(**SEEDS), tmp_path, 2, quiet=True)
        monkeypatch.undo()
        train.run_seeds(tiny.config(**SEEDS), tmp_path, 2, quiet=True)
        for seed in map(str, range(2)):
            assert rows_of(tmp_path / seed) == rows_of(together[0] / seed)

    def test_no_seed_at_all_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match="--vmap_seeds"):
            train.run_seeds(tiny.config(), tmp_path / "run", 0, quiet=True)
        assert not (tmp_path / "run").exists()
