"""Seeds, or values of a number, as one program: each run ends as it does alone."""

import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from jax.interpreters import partial_eval

import zo_fl
from tests import tiny
from tests.test_run import OVERRIDES, rows_of
from zo_fl import api, methods, run_many
from zo_fl import config as configs
from zo_fl.config import check
from zo_fl.engine import algorithm
from zo_fl.engine.fields import ConfigError
from zo_fl.engine.round import make_algorithm
from zo_fl.host import folder

SEEDS = OVERRIDES | {"seed": 0}


def assert_close(path, alone, rtol=1e-3):
    """Checks that a run's rows are those of another, but for rounding."""
    for got, expected in zip(rows_of(path), rows_of(alone), strict=True):
        assert got.keys() == expected.keys()
        for name in got:
            if name in ("train_loss", "test_loss", "update_norm"):
                assert got[name] == pytest.approx(expected[name], rel=rtol)
            elif "accuracy" not in name and "loss" not in name:
                assert got[name] == expected[name]


def stopped_at(round_idx, function, *arguments):
    """Calls a function, which gets a Ctrl-C when a round of some run is written."""
    write, sent = folder.MetricsWriter.write, []

    def interrupting(self, rows):
        write(self, rows)
        if rows[-1]["round"] >= round_idx and not sent:  # a second one would act at once
            sent.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(zo_fl.Interrupted):
        patched.setattr(folder.MetricsWriter, "write", interrupting)
        function(*arguments, quiet=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The second seed's run on its own."""
    path = tmp_path_factory.mktemp("alone")
    return path, api.run(tiny.config(**OVERRIDES), path, quiet=True)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    path = tmp_path_factory.mktemp("seeds")
    return path, run_many.run_seeds(tiny.config(**SEEDS), path, 2, quiet=True)


@pytest.mark.slow
def test_each_seed_has_a_whole_folder_and_ends_as_it_does_alone(together, alone):
    path, summaries = together
    assert summaries[1].keys() == alone[1].keys()
    assert summaries[0]["final_accuracy"] != summaries[1]["final_accuracy"]
    assert_close(path / "1", alone[0])
    for seed in range(2):
        names = {one.name for one in (path / str(seed)).iterdir()}
        assert names >= {"config.json", "metrics.jsonl", "summary.json", "checkpoints", "model"}
        config = json.loads((path / str(seed) / "config.json").read_text())["config"]
        assert config["seed"] == seed


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Both seeds, stopped in round 3."""
    path = tmp_path_factory.mktemp("stopped")
    stopped_at(3, run_many.run_seeds, tiny.config(**SEEDS), path, 2)
    return path


@pytest.mark.slow
def test_seeds_go_on_from_the_latest_round_of_which_all_have_a_checkpoint(
    together, stopped, tmp_path
):
    path, other = shutil.copytree(stopped, tmp_path / "one"), tmp_path / "other"
    stopped_at(5, run_many.run_seeds, tiny.config(**SEEDS), path, 2)
    rounds = path / "1" / "checkpoints" / "rounds"
    newest = max(rounds.iterdir(), key=lambda one: int(one.name))
    assert int(newest.name) > 3
    for file in newest.rglob("progress/metadata"):
        file.write_bytes(b"{}")
    shutil.copytree(path, other)
    run_many.run_seeds(tiny.config(**SEEDS), path, 2, quiet=True)
    for seed in ("0", "1"):
        assert rows_of(path / seed) == rows_of(together[0] / seed)
    for where in ("rounds", "pivot"):
        shutil.rmtree(other / "0" / "checkpoints" / where / "3")
    with pytest.raises(ConfigError, match="no checkpoint of the same round"):
        run_many.run_seeds(tiny.config(**SEEDS), other, 2, quiet=True)


@pytest.mark.slow
def test_a_seed_that_was_stopped_among_others_is_resumed_alone(alone, stopped, tmp_path):
    path = shutil.copytree(stopped / "1", tmp_path / "1")
    assert len(rows_of(path)) == 3
    api.run(tiny.config(**OVERRIDES), path, quiet=True)
    assert_close(path, alone[0])


@pytest.mark.slow
def test_each_value_ends_as_it_does_alone(tmp_path):
    values = 0.02, 0.05
    config = tiny.config("fedavg")
    summaries = run_many.run_values(config, tmp_path, "warmup.lr", values, quiet=True)
    for value, summary in zip(values, summaries, strict=True):
        path, config = tmp_path / f"{value:g}", tiny.config("fedavg", warmup__lr=value)
        assert api.run(config, path, quiet=True) == summary  # finished, under that config
    api.run(config, tmp_path / "alone", quiet=True)
    assert_close(path, tmp_path / "alone")


def varying(part):
    """Returns the fields of a method's own block that may vary."""
    known, own = check.flat(configs.blocks()), methods.METHODS[part].reads[-1]
    return [name for name, one in known.items() if one.varies and name.split(".")[0] == own]


# fedavg_all reads nothing of the block zo but the number of rounds.
@pytest.mark.slow
@pytest.mark.parametrize("part", sorted(filter(varying, methods.METHODS.keys() - {"fedavg_all"})))
def test_all_that_may_vary_is_an_argument_of_the_rounds(part):
    built = tiny.build(part)

    def rounds(numbers):
        model, before, done = built.task.init(built.run_key), (), []
        for phase in built.phases_with(numbers):
            state = algorithm.start(phase, *model, 0, before)
            made = make_algorithm(phase, built.engine)
            state, *_ = made.round(state, built.data_of(phase), built.run_key)
            model, before = (state.params, state.model_state), state.strategy_state
            done.append(state.params)
        return done

    flat = configs.flatten(configs.resolve(tiny.config(part)))
    numbers = {name: np.float32(flat[name]) for name in varying(part)}
    traced = jax.make_jaxpr(rounds)(numbers).jaxpr
    _, used = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))
    assert all(used), dict(zip(sorted(numbers), used, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("stopped", (False, pytest.param(True, marks=pytest.mark.nightly)))
def test_a_value_that_diverges_leaves_the_others_alone_also_when_all_are_resumed(tmp_path, stopped):
    config = tiny.config("zo", zo__num_rounds=15)
    values = (1e30, 1e-3, 1e-2)
    arguments = config, tmp_path / "stopped", "zo.eps", values
    if stopped:
        stopped_at(11, run_many.run_values, *arguments)
    again = run_many.run_values(*arguments, quiet=True)
    assert again[0]["diverged_round"] is not None
    assert [summary["diverged_round"] for summary in again[1:]] == [None, None]
    api.run(tiny.config("zo", zo__num_rounds=15, zo__eps=1e-2), tmp_path / "alone", quiet=True)
    assert_close(tmp_path / "stopped" / "0.01", tmp_path / "alone")


@pytest.mark.parametrize(
    "field, values, message",
    [
        ("zo.num_directions", (1, 3), "config.zo.num_directions=1, 3: runs that differ in it"),
        ("data.alpha", (0.1, 1.0), "runs that differ in it cannot be one program; allowed: the"),
        ("zo.eps", ("auto", 1e-3), "config.zo.eps=auto lets the program choose"),
        ("zo.lr", (1e-3, 1e-3), "no two alike"),
        ("model.name", ("mlp", "cnn"), "config.model.name=mlp, cnn: runs that differ in it"),
        ("zo.lr", (), "no values"),
        ("zo.lr", (-1.0, 1.0), "config.zo.lr=-1.0 is not allowed"),
        ("zo.rate", (1.0, 2.0), "unknown field config.zo.rate"),
    ],
)
def test_values_that_cannot_be_one_program_are_refused_and_nothing_is_written(
    tmp_path, field, values, message
):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        run_many.run_values(tiny.config(), tmp_path / "run", field, values, quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes, count, message",
    [
        ({}, 0, "--vmap_seeds"),
        ({"run__data": "stream"}, 2, "config.run.data"),  # different cohorts
        ({"warmup__stop": "population"}, 2, "let it have all its rounds"),
    ],
)
def test_seeds_that_cannot_be_one_program_are_refused_and_nothing_is_written(
    tmp_path, changes, count, message
):
    with pytest.raises(ConfigError, match=message):
        run_many.run_seeds(tiny.config(**changes), tmp_path / "run", count, quiet=True)
    assert not (tmp_path / "run").exists()
