"""Whole runs: what they leave behind, that they resume, and how they fail."""

import errno
import json
import os
import re
import signal
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

import zo_fl
from tests import tiny
from zo_fl import api
from zo_fl import config as configs
from zo_fl.compiled import Compiled
from zo_fl.engine.fields import ConfigError
from zo_fl.host import checkpoint
from zo_fl.host.checkpoint import Checkpoints
from zo_fl.host.files import StorageError
from zo_fl.host.metrics import read_metrics

pytestmark = pytest.mark.slow

OVERRIDES = dict(
    seed=1,
    warmup__num_rounds=3,
    zo__num_rounds=4,
    run__rounds_per_jit=2,
    run__eval_every=2,
    run__checkpoint_every=3,
)


def run(path, *algorithm, on_round=None, warm_start=None, **changes):
    config = tiny.config(*algorithm, **OVERRIDES | changes)
    return api.run(config, path, on_round=on_round, warm_start=warm_start, quiet=True)


def rows_of(path):
    """Returns all rows, without the seconds that they took."""
    return [{key: row[key] for key in row if key != "seconds"} for row in read_metrics(path)]


def timeless(summary):
    return {key: value for key, value in summary.items() if "seconds" not in key}


def final_state(path):
    """Returns all arrays of the last checkpoint of a run of ``OVERRIDES``."""
    built = tiny.build(**OVERRIDES)
    _, state, _ = tiny.latest(path, tiny.start(built, built.phases[-1]))
    return jax.tree.leaves(state)


def assert_same_end(path, other):
    assert rows_of(path) == rows_of(other)
    for got, expected in zip(final_state(path), final_state(other), strict=True):
        np.testing.assert_array_equal(got, expected)


class Killed(BaseException):
    pass


def killing(round_idx):
    """Returns what is called with each row, and ends the run at one of them."""

    def kill(row):
        if row["round"] == round_idx:
            raise Killed

    return kill


def interrupting(round_idx):
    """Returns what is called with each row, and sends one Ctrl-C from a round on."""
    sent = []

    def interrupt(row):
        if row["round"] >= round_idx and not sent:  # a second one would act at once
            sent.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    return interrupt


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("finished")
    return path, run(path)


def test_a_run_leaves_what_the_readme_promises(finished):
    path, summary = finished
    names = {"config.json", "partition.json", "metrics.jsonl", "summary.json", "curves.png"}
    assert {p.name for p in path.iterdir()} >= names | {"checkpoints", "tb", "model"}
    assert json.loads((path / "summary.json").read_text()) == summary
    config = json.loads((path / "config.json").read_text())
    assert config["config"]["zo"]["num_rounds"] == 4 and config["provenance"]["versions"]["jax"]


def test_every_round_has_a_row_and_evaluated_ones_have_accuracies(finished):
    rows = rows_of(finished[0])
    assert [row["round"] for row in rows] == list(range(1, 8))
    assert [row["phase"] for row in rows] == ["warmup"] * 3 + ["zo"] * 4
    evaluated = [row["round"] for row in rows if "test_accuracy" in row]
    assert evaluated == [2, 3, 4, 6, 7]  # every second, and the end of each phase
    assert all(row["train_loss"] > 0 and row["update_norm"] > 0 for row in rows)


def test_the_summary_says_what_the_program_chose(finished):
    def chosen(*algorithm, **changes):
        built = tiny.build(*algorithm, **changes)
        return Compiled(built, configs.resolve(tiny.config(*algorithm, **changes))["run"]).chosen()

    assert finished[1]["chosen"] == chosen(**OVERRIDES)
    of_program = chosen("zo", zo__eps="auto", run__clients_per_vmap=2)
    assert of_program == {"zo": {"eps": 1e-5, "microbatch": 90}}
    of_program = chosen("zo", zo__microbatch=9, run__clients_per_vmap="auto")
    assert of_program == {"zo": {"clients_per_vmap": 1}}


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


class Stopped(NamedTuple):
    """A run that was stopped in many ways and always resumed.

    Attributes:
      path: its folder.
      rows: how many it had when it was killed.
      full: what a full disk was reported as.
      kept: rounds with a checkpoint then.
      summary: at its end.
    """

    path: Path
    rows: int
    full: str
    kept: list[int]
    summary: dict


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    path = tmp_path_factory.mktemp("stopped")
    with pytest.raises(zo_fl.Interrupted):
        run(path, on_round=interrupting(1))
    with pytest.raises(Killed):
        run(path, on_round=killing(4))
    rows = len(rows_of(path))

    def save(manager, *_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StorageError) as full:
        patch.setattr(checkpoint.ocp.CheckpointManager, "save", save)
        run(path)
    kept = Checkpoints(path).rounds()
    with pytest.raises(zo_fl.Interrupted):
        run(path, on_round=interrupting(6))
    config = json.loads((path / "config.json").read_text())
    config["provenance"]["versions"]["jax"] = "0.0.1"
    (path / "config.json").write_text(json.dumps(config))
    return Stopped(path, rows, str(full.value), kept, run(path))


def test_a_run_stopped_anywhere_and_resumed_ends_bit_identical(finished, stopped):
    assert_same_end(stopped.path, finished[0])


def test_a_kill_loses_only_the_rounds_since_the_last_checkpoint(stopped):
    assert stopped.rows == 4 and stopped.kept == [1, 3]


def test_a_full_disk_is_one_line_that_names_the_file(stopped):
    expected = r"cannot write .*/rounds/6: No space left on device"
    assert re.fullmatch(expected, stopped.full)


def test_what_a_run_goes_on_with_is_a_warning_if_it_began_with_something_else(stopped):
    (warning,) = stopped.summary["warnings"]
    expected = f"goes on from round 6 with versions jax {jax.__version__} (begun with 0.0.1)"
    assert warning == expected


def test_a_finished_run_is_only_reported(finished):
    path, summary = finished
    before = (path / "metrics.jsonl").stat().st_mtime_ns
    assert run(path) == summary
    assert (path / "metrics.jsonl").stat().st_mtime_ns == before


def test_another_config_does_not_touch_a_runs_folder(finished):
    with pytest.raises(ConfigError, match=r"config\.zo\.lr=0\.001, given 0\.5.*--workdir"):
        run(finished[0], zo__lr=0.5)


def test_without_validation_examples_there_is_no_best_round(tmp_path):
    summary = run(tmp_path, "fedavg", data__val_fraction=0.0)
    assert summary["best_val_accuracy"] is None and summary["accuracy_at_best_val"] is None
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


@pytest.fixture(scope="module")
def warm_ups(tmp_path_factory):
    """Folders of a short warm-up and of a longer one; the latter's summary."""
    short, long = (tmp_path_factory.mktemp(name) for name in ("short", "long"))
    run(short, "fedavg", warmup__num_rounds=2)
    return short, long, run(long, "fedavg")


def test_a_warm_up_alone_is_the_start_of_the_whole(warm_ups, finished):
    _, path, summary = warm_ups
    assert summary["pivot_accuracy"] is None and summary["delta_lo"] is None
    assert rows_of(path) == rows_of(finished[0])[:3]


def test_a_longer_warm_up_goes_on_from_a_shorter_one(warm_ups, tmp_path):
    short, long, expected = warm_ups
    assert timeless(run(tmp_path, "fedavg", warm_start=short)) == timeless(expected)
    assert rows_of(tmp_path) == rows_of(long)


def test_from_a_warm_up_and_with_more_rounds_later_a_run_ends_bit_identical_to_a_whole_one(
    warm_ups, finished, tmp_path
):
    run(tmp_path, zo__num_rounds=3, warm_start=warm_ups[1])
    # How often it is evaluated and saved is no other run.
    assert timeless(run(tmp_path, run__checkpoint_every=2)) == timeless(finished[1])
    assert_same_end(tmp_path, finished[0])
    config = json.loads((tmp_path / "config.json").read_text())["config"]
    assert config["zo"]["num_rounds"] == 4 and config["run"]["checkpoint_every"] == 2
    with pytest.raises(ConfigError, match="config.zo.num_rounds=4, given 3; only the same"):
        run(tmp_path, zo__num_rounds=3)


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
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "run", warm_start=warm_ups[0], **changes)
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_finished_warm_up_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no finished run; change --warm_start"):
        run(tmp_path / "run", warm_start=tmp_path / "empty")


class TestDivergence:
    def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_round(self, tmp_path):
        # Several steps a client: the second one is of a model that is not finite.
        summary = run(tmp_path, warmup__lr=1e30, warmup__batch_size=20)
        assert summary["diverged_round"] == rows_of(tmp_path)[-1]["round"] in (1, 2)
        who = r"(client \d|\d clients, \d the first of them,)"
        assert re.match(rf"round \d: what {who} sent is not finite", summary["divergence"])
        assert Checkpoints(tmp_path).latest_round() is None  # nothing of it is kept

    def test_a_last_update_that_overflows_is_no_success(self, tmp_path):
        summary = run(tmp_path, "zo", zo__num_rounds=1, zo__lr=1e38)
        assert summary["diverged_round"] == 1 and "update is not finite" in summary["divergence"]

    def test_steps_too_small_for_the_precision_are_a_warning(self, tmp_path):
        summary = run(tmp_path, "zo", zo__eps=1e-30)
        (warning,) = summary["warnings"]
        assert warning.startswith("round 1 (zo): every scalar of every client is exactly zero")
        assert summary["diverged_round"] is None


def test_no_array_lives_longer_than_it_is_needed(tmp_path):
    seen = {}

    def observe(row):
        seen[row["round"]] = len(jax.live_arrays())

    changes = {"run__eval_every": 3, "run__checkpoint_every": 3}
    run(tmp_path, on_round=observe, warmup__num_rounds=9, zo__num_rounds=9, **changes)
    assert seen[8] <= seen[5] and seen[17] <= seen[14]


def test_a_folder_has_one_owner(tmp_path):
    refused = []

    def another(row):
        if not refused:
            before = (tmp_path / "metrics.jsonl").read_bytes()
            with pytest.raises(ConfigError, match=rf"in use by process {os.getpid()} on .*started"):
                run(tmp_path, "fedavg")
            refused.append((tmp_path / "metrics.jsonl").read_bytes() == before)

    run(tmp_path, "fedavg", on_round=another)
    assert refused == [True]


@pytest.mark.parametrize(
    "overrides",
    (
        {"run__eval_every": 0},
        {"run__num_devices": 99},
        {"run__data": "host"},
        {"run__clients_per_vmap": -1},
        {"warmup__num_rounds": 0, "zo__num_rounds": 0},
        {"algorithm": "fedsgd"},
        {"data__high_fraction": 0.0},
    ),
)
def test_bad_input_is_one_line_and_leaves_no_folder(tmp_path, overrides):
    with pytest.raises(ConfigError, match="config.") as caught:
        run(tmp_path / "run", **overrides)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()
