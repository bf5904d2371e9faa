"""Runs that differ in a number, as one program: each ends as it does alone."""

import json
import os
import signal

import jax
import numpy as np
import pytest

import zo_fl
from tests import commands, tiny
from zo_fl import api as train
from zo_fl import config as configs
from zo_fl import methods as algorithms
from zo_fl.engine import fields
from zo_fl.engine.errors import ConfigError
from zo_fl.engine.round import make_algorithm
from zo_fl.host import run_folder


def rows_of(path):
    return zo_fl.read_metrics(path)


def varying(part):
    """Fields of an algorithm's blocks that may vary."""
    known, read = fields.flat(configs.blocks()), algorithms.blocks_of(part)
    return [name for name, one in known.items() if one.varies and name.split(".")[0] in read]


@pytest.mark.slow
@pytest.mark.parametrize(
    "field, values",
    [
        ("zo.lr", (1e-3, 4e-3)),
        ("zo.eps", (1e-3, 1e-2)),
        ("zo.tau", (0.5, 1.0)),
        ("warmup.lr", (0.02, 0.05)),
        ("warmup.server_lr", (0.5, 1.0)),
    ],
)
def test_each_value_ends_as_it_does_alone(tmp_path, field, values):
    summaries = train.run_values(tiny.config(), tmp_path, field, values, quiet=True)
    steps = []
    for value, summary in zip(values, summaries, strict=True):
        folder = tmp_path / f"{value:g}"
        config = tiny.config(**{field.replace(".", "__"): value})
        train.run(config, tmp_path / "alone" / f"{value:g}", quiet=True)
        assert train.run(config, folder, quiet=True) == summary  # finished, under that config
        both = zip(rows_of(folder), rows_of(tmp_path / "alone" / f"{value:g}"), strict=True)
        for got, expected in both:
            assert got.keys() == expected.keys()
            for name in {"train_loss", "update_norm", "test_loss"} & got.keys():
                assert got[name] == pytest.approx(expected[name], rel=1e-3)
            assert got["uplink_bytes"] == expected["uplink_bytes"]
        steps.append([row["update_norm"] for row in rows_of(folder)])
        found = json.loads((folder / "config.json").read_text())["config"]
        block, name = field.split(".")
        assert found[block][name] == value
    if field != "zo.eps":  # a derivative hardly depends on it
        assert steps[0] != pytest.approx(steps[1], rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("part", sorted(filter(varying, algorithms.ALGORITHMS)))
def test_all_that_may_vary_is_an_argument_of_the_rounds_of_every_algorithm(part):
    config = configs.resolve(tiny.config(part))
    built = tiny.build(part)

    def rounds(numbers):
        state, done = None, []
        for phase in built.phases_with(numbers):
            first = tiny.start(built, phase)
            if phase.continues:
                first = first._replace(strategy_state=state.strategy_state)
            made = make_algorithm(phase, built.engine)
            state, *_ = made.round(first, built.data_of(phase), built.run_key)
            done.append(state.params)
        return done

    flat = configs.flatten(config)
    numbers = {name: np.float32(flat[name]) for name in varying(part)}
    text = jax.jit(rounds).lower(numbers).as_text()
    used = text.partition("func.func public @main(")[2].partition(") ->")[0]
    read = [name for name in numbers if part != "fedavg_all" or name.startswith("warmup.")]
    assert used.count("tensor<f32>") == len(read), used


@pytest.mark.slow
def test_a_value_that_diverges_leaves_the_others_alone(tmp_path):
    config = tiny.config(warmup__num_rounds=1, zo__num_rounds=4)
    bad, good = train.run_values(config, tmp_path, "zo.lr", (1e12, 1e-3), quiet=True)
    assert bad["diverged_round"] is not None and good["diverged_round"] is None
    alone = train.run(config, tmp_path / "alone", quiet=True)
    assert good["final_accuracy"] == pytest.approx(alone["final_accuracy"], abs=0.02)


@pytest.mark.slow
def test_stopped_after_one_has_diverged_the_others_go_on(tmp_path, monkeypatch):
    config = tiny.config(warmup__num_rounds=1, zo__num_rounds=15)
    values, write, sent = (1e12, 1e-3, 2e-3), run_folder.MetricsWriter.write, []
    whole = train.run_values(config, tmp_path / "whole", "zo.lr", values, quiet=True)

    def interrupting(self, rows):
        write(self, rows)
        if rows[-1]["round"] >= 11 and not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(run_folder.MetricsWriter, "write", interrupting)
    with pytest.raises(zo_fl.Interrupted):
        train.run_values(config, tmp_path / "stopped", "zo.lr", values, quiet=True)
    monkeypatch.undo()
    again = train.run_values(config, tmp_path / "stopped", "zo.lr", values, quiet=True)
    for value, got, expected in zip(values, again, whole, strict=True):
        assert got["diverged_round"] == expected["diverged_round"]
        last = [rows_of(tmp_path / name / f"{value:g}")[-1] for name in ("stopped", "whole")]
        assert last[0]["train_loss"] == pytest.approx(last[1]["train_loss"], rel=1e-5)


@pytest.mark.parametrize(
    "field, values, message",
    [
        ("zo.num_directions", (1, 3), "config.zo.num_directions=1, 3: runs that differ in it"),
        ("data.alpha", (0.1, 1.0), "runs that differ in it cannot be one program; allowed: the"),
        ("zo.eps", (0.0, 1e-3), "config.zo.eps=0 stands for the best of a precision"),
        ("zo.lr", (1e-3, 1e-3), "no two alike"),
        ("model.name", ("mlp", "cnn"), "config.model.name=mlp, cnn: runs that differ in it"),
        ("zo.lr", (), "no values"),
        ("zo.lr", (-1.0, 1.0), "config.zo.lr=-1.0 is not allowed"),
        ("zo.rate", (1.0, 2.0), "unknown field config.zo.rate"),
    ],
)
def test_what_cannot_be_one_program_is_refused_and_nothing_is_written(
    tmp_path, field, values, message
):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        train.run_values(tiny.config(), tmp_path / "run", field, values, quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_command_prints_a_line_a_value(tmp_path):
    model = ("--config.model.name=mlp", "--config.model.norm=none", "--config.warmup.num_rounds=1")
    command = ("-m", "experiments.main", "--config=quickstart", *model)
    rest = ("--config.zo.num_rounds=1", "--vmap_values=zo.lr=0.001,0.01", f"--workdir={tmp_path}/W")
    got = commands.run(*command, *rest)
    assert got.returncode == 0, got.stderr
    assert " zo.lr=0.001 " in got.stdout and " zo.lr=0.01 " in got.stdout
    assert {path.name for path in (tmp_path / "W").iterdir() if path.is_dir()} == {"0.001", "0.01"}
    got = commands.run(*command, "--vmap_values=zo.lr=0.001,x", f"--workdir={tmp_path}/V")
    assert got.returncode == 2 and "config.zo.lr='x' is not allowed" in got.stderr
