"""Where phases run on a CPU, a core a client where clients train; and what a run was made with."""

import json
import os
import socket
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

import zo_fl
from tests import commands, tiny
from tests.test_run import rows_of
from zo_fl import api
from zo_fl import config as configs
from zo_fl.engine import layout
from zo_fl.engine.algorithm import Client, Group
from zo_fl.engine.fields import ConfigError
from zo_fl.host import devices


def group(cohort_size, trains=True):
    client, everyone = Client(update=lambda: None), np.arange(100)
    return Group(client, lambda key: None, cohort_size, 1.0, everyone, float(trains))


@pytest.fixture
def cores(monkeypatch):
    """The test process's virtual devices, as if they were the cores of a CPU."""
    monkeypatch.setattr(devices, "prepare", lambda: True)
    return jax.devices("cpu")


@pytest.mark.parametrize(("cohorts", "expected"), [([50], 8), ([7, 3], 3), ([1], 1)])
def test_clients_that_train_have_a_core_each_while_there_are_cores(cores, cohorts, expected):
    engine = devices.make_engine(configs.plain(tiny.config(run__num_devices="auto"))["run"])
    assert engine.mesh.size == 1 and len(engine.cores) == len(cores) == 8
    assert engine.of([group(size) for size in cohorts]).mesh.size == expected


def test_forward_passes_stay_on_one_device_and_devices_that_were_asked_for_are_those_of_all(cores):
    engine = devices.make_engine(configs.plain(tiny.config(run__num_devices="auto"))["run"])
    assert engine.of([group(8), group(8, trains=False)]) is engine
    engine = devices.make_engine(configs.plain(tiny.config(run__num_devices=2))["run"])
    assert engine.mesh.size == 2 and engine.of([group(8)]) is engine


def rows_on(path, num_devices, **changes):
    changes |= {"run__num_devices": num_devices, "run__eval_every": 1}
    api.run(tiny.config(**changes), path, quiet=True)
    return rows_of(path)


@pytest.fixture(scope="module")
def of_one(tmp_path_factory):
    """The rows of a run on one device."""
    return rows_on(tmp_path_factory.mktemp("one"), 1)


@pytest.mark.slow
@pytest.mark.parametrize(("data", "count"), [("device", 3), ("stream", 8)])
def test_a_run_is_the_same_wherever_its_clients_train(
    of_one, cores, tmp_path, monkeypatch, data, count
):
    # Four clients train: on three cores the fourth has all of them, as padding is skipped.
    monkeypatch.setattr(devices, "make_mesh", lambda *_: layout.make_mesh(cores[:count]))
    found = rows_on(tmp_path, "auto", run__data=data)
    for row, expected in zip(found, of_one, strict=True):
        assert row["uplink_bytes"] == expected["uplink_bytes"]
        for name in ("train_loss", "update_norm", "test_loss"):
            np.testing.assert_allclose(row[name], expected[name], rtol=1e-5)


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


def test_streaming_is_the_default_where_there_are_several_processes(monkeypatch):
    assert not devices.is_streamed("auto") and devices.is_streamed("stream")
    monkeypatch.setattr(devices.processes, "several", lambda: True)
    assert devices.is_streamed("auto") and not devices.is_streamed("device")


def test_provenance_is_json_of_what_is_in_use_and_names_no_machine():
    with jax.default_matmul_precision("highest"):
        found = devices.provenance(zo_fl.__version__)
    assert socket.gethostname() not in json.dumps(found)
    assert found["versions"]["zo_fl"] == zo_fl.__version__
    assert found["versions"]["jax"] == jax.__version__
    assert found["devices"]["count"] == jax.device_count()
    assert found["numerics"]["prng_implementation"] == "threefry2x32"
    assert found["numerics"]["jax_default_matmul_precision"] == "highest"
    assert found["started"].endswith("+00:00")


def git(folder, *command):
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *command], check=True, capture_output=True)


def test_the_revision_is_that_of_the_repository_that_tracks_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert devices.git_state(tmp_path) is None
    for name in ("package", "ignored"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file.py").write_text("1\n")
    (tmp_path / ".gitignore").write_text("ignored\n")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "Begin")
    clean = devices.git_state(tmp_path / "package")
    assert clean is not None and len(clean["revision"]) == 40 and not clean["dirty"]
    assert devices.git_state(tmp_path / "ignored") is None
    (tmp_path / "package" / "file.py").write_text("2\n")
    assert devices.git_state(tmp_path / "package") == clean | {"dirty": True}
    monkeypatch.setenv("PATH", str(tmp_path))  # without git
    assert devices.git_state(tmp_path / "package") is None


@pytest.mark.parametrize(
    ("numerics", "density", "words"),
    (
        ({"jax_threefry_partitionable": False}, 1.0, "JAX_THREEFRY_PARTITIONABLE=0"),
        ({}, 0.01, "config.zo.density=0.01 chose other coordinates"),
    ),
)
def test_a_run_whose_keys_stand_for_other_numbers_now_is_refused(numerics, density, words):
    now = devices.provenance("0")["numerics"]
    config = {"zo": {"density": density}}
    saved = {"config": config, "provenance": {"numerics": numerics}}
    with pytest.raises(ConfigError, match=words):
        devices.check_random_numbers(Path("run"), saved)
    devices.check_random_numbers(Path("run"), saved | {"provenance": {"numerics": now}})
    devices.check_random_numbers(Path("run"), {"config": {"zo": {"density": 1.0}}})


def test_a_platform_that_is_not_there_is_one_line(monkeypatch, tmp_path):
    def fail():
        raise AssertionError("Unable to initialize backend 'cuda':\nlong")

    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(
        ConfigError, match=r"no device \(Unable .*'cuda':\); change JAX_PLATFORMS=cuda"
    ):
        api.run("quickstart", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "switched, message",
    [
        (lambda: jax.disable_jit(), "JAX_DISABLE_JIT=True: rounds are compiled; allowed: False"),
        (lambda: jax.numpy_dtype_promotion("strict"), "JAX_NUMPY_DTYPE_PROMOTION=strict: .*"),
        (lambda: jax.transfer_guard("disallow"), "JAX_TRANSFER_GUARD=disallow: data go .*"),
    ],
)
def test_a_switch_of_jax_under_which_rounds_do_not_run_is_one_line(switched, message, tmp_path):
    with switched(), pytest.raises(ConfigError, match=message):
        api.run("quickstart", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nan_on_purpose_and_a_stop_at_nan_do_not_go_together(tmp_path):
    with jax.debug_nans(True), pytest.raises(ConfigError, match="allowed: one of the two"):
        api.run("quickstart", tmp_path / "run", changes={"faults.nan": 0.1})
    assert not (tmp_path / "run").exists()
