"""Where phases run on a CPU: a core a client where clients train, one device elsewhere."""

import json
import os

import jax
import numpy as np
import pytest

from tests import commands, tiny
from zo_fl import api as train
from zo_fl.engine import layout as engine
from zo_fl.engine.strategy import ClientStrategy, Group
from zo_fl.host import devices
from zo_fl.host.metrics import read_metrics


def group(cohort_size, trains=True):
    strategy, everyone = ClientStrategy(client_update=lambda: None), np.arange(100)
    return Group(strategy, lambda key: None, cohort_size, 1.0, everyone, float(trains))


@pytest.fixture
def cores(monkeypatch):
    """The test process's virtual devices, as if they were the cores of a CPU."""
    monkeypatch.setattr(devices, "prepare", lambda: True)
    return jax.devices("cpu")


@pytest.mark.parametrize(("cohorts", "expected"), [([50], 8), ([6], 6), ([7, 3], 3), ([1], 1)])
def test_clients_that_train_have_a_core_each_while_there_are_cores(cores, cohorts, expected):
    layout = devices.make_engine(tiny.config(run__num_devices=0)["run"])
    assert layout.mesh.size == 1 and len(layout.cores) == len(cores) == 8
    assert layout.of([group(size) for size in cohorts]).mesh.size == expected


def test_forward_passes_stay_on_one_device(cores):
    layout = devices.make_engine(tiny.config(run__num_devices=0)["run"])
    assert layout.of([group(8), group(8, trains=False)]) is layout


def test_devices_that_were_asked_for_are_those_of_all_phases(cores):
    layout = devices.make_engine(tiny.config(run__num_devices=2)["run"])
    assert layout.mesh.size == 2 and layout.of([group(8)]) is layout


@pytest.mark.slow
@pytest.mark.parametrize(("data", "count"), [("device", 3), ("stream", 8)])
def test_a_run_is_the_same_wherever_its_clients_train(cores, tmp_path, monkeypatch, data, count):
    # Four clients train: on three cores the fourth has all of them, as padding is skipped.
    monkeypatch.setattr(devices, "make_mesh", lambda *_: engine.make_mesh(cores[:count]))

    def run(name, num_devices):
        changes = {"run__num_devices": num_devices, "run__data": data, "run__eval_every": 1}
        train.run(tiny.config(**changes), tmp_path / name, quiet=True)
        return read_metrics(tmp_path / name / "metrics.jsonl")

    found = run("cores", 0)
    monkeypatch.undo()
    for row, expected in zip(found, run("one", 1), strict=True):
        assert row["uplink_bytes"] == expected["uplink_bytes"]
        for name in ("train_loss", "update_norm", "test_loss"):
            np.testing.assert_allclose(row[name], expected[name], rtol=1e-5)


@pytest.mark.slow
def test_on_cores_it_stops_and_goes_on_as_if_it_had_not(cores, tmp_path):
    changes = {"run__num_devices": 0, "run__rounds_per_jit": 1, "run__checkpoint_every": 1}
    config = tiny.config("fedavg", **changes)

    def rows(name):
        found = read_metrics(tmp_path / name / "metrics.jsonl")
        return [{key: row[key] for key in row if key != "seconds"} for row in found]

    def stop(row):
        if row["round"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.run(config, tmp_path / "stopped", quiet=True, on_round=stop)
    for name in ("stopped", "whole"):
        train.run(config, tmp_path / name, quiet=True)
    assert rows("stopped") == rows("whole") and len(rows("whole")) == tiny.ROUNDS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "flags", "expected"),
    [
        ("", "", [True, 2]),
        ("jax.devices();", "", [False, 1]),
        ("jax.config.update('jax_num_cpu_devices', 3);", "", [False, 3]),
        ("", "--xla_force_host_platform_device_count=5", [False, 5]),
    ],
)
def test_cores_become_devices_unless_it_is_too_late_or_the_user_said_otherwise(
    before, flags, expected
):
    code = (
        "import json, os, jax; os.sched_getaffinity = lambda _: {0, 1};"
        "from zo_fl.host import devices;"
        f"{before} print(json.dumps([devices.prepare(), jax.device_count()]))"
    )
    ended = commands.run("-c", code, env={**os.environ, "XLA_FLAGS": flags})
    assert json.loads(ended.stdout) == expected, ended.stderr
