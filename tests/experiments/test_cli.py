"""The commands as a user types them."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from experiments import cli
from tests import commands
from zo_fl.engine.errors import ConfigError
from zo_fl.host.files import StorageError

pytestmark = pytest.mark.slow

FAST = (
    "--config.data.name=synthetic",
    "--config.model.name=mlp",
    "--config.model.norm=none",
    "--config.run.num_devices=1",
)


def call(module, *arguments, **settings):
    return commands.run("-m", f"experiments.{module}", *arguments, **settings)


BAD_INPUT = (
    (("--config.zo.epz=1",), "unknown field config.zo.epz; did you mean config.zo.eps"),
    (("--config.zo.tau=abc",), "config.zo.tau='abc' is not allowed; allowed: a number above 0"),
    (("--config.zoo=1",), "unknown field config.zoo"),
    (("--zo.eps=1",), "zo.eps"),
    (("config.zo.eps=1",), "unexpected argument 'config.zo.eps=1'"),
    (
        ("--config=configs/cifar100.py",),
        "no config file 'configs/cifar100.py'; did you mean cifar10_",
    ),
    (("--config.data.high_fraction=0.0",), "config.data.high_fraction"),
    (("--config.zo.cohort_size=21",), "config.zo.cohort_size=21 is outside what is allowed"),
    (("--config.data.name=cifar10", "--config.data.data_dir=nowhere"), "prepare_data"),
    (("--config.run.device=tpu",), "config.run.device"),
    (("--config.model.name=resnet81",), "config.model.name"),
)


@pytest.mark.parametrize("arguments, said", BAD_INPUT, ids=[case[0][-1] for case in BAD_INPUT])
def test_bad_input_is_one_line_and_status_2_and_writes_nothing(arguments, said, tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    got = call("main", "--config=quickstart", workdir, *arguments, cwd=tmp_path)
    assert got.returncode == 2, got.stderr
    assert got.stdout == "" and got.stderr.count("\n") == 1, got.stderr
    assert said in got.stderr and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "raised, status, said",
    (
        (ConfigError("a field\n is wrong"), 2, "error: a field is wrong\n"),
        (StorageError(28, "cannot write x"), 1, "error: cannot write x; make room for it, then"),
        (StorageError(13, "cannot write x"), 1, "error: cannot write x; make it writable, then"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ),
)
def test_what_a_command_raises_is_one_line_and_a_status(raised, status, said, monkeypatch, capsys):
    def main(argv):
        raise raised

    monkeypatch.setattr(cli.app, "run", lambda wrapped, flags_parser: wrapped([]))
    ignored = []
    monkeypatch.setattr(cli, "ignore_signals", lambda: ignored.append(True))
    with pytest.raises(SystemExit) as end:
        cli.run(main)
    printed = capsys.readouterr().err
    assert end.value.code == status and printed.startswith(said) and printed.count("\n") == 1
    assert bool(ignored) == (status == 130)


def test_output_that_nobody_reads_on_ends_a_command_without_a_line():
    """As by ``| head``, of more than fits into a pipe, or of what is flushed at the end alone."""
    for lines in (10**6, 10):
        code = f"from experiments import cli\ncli.run(lambda argv: print('line\\n' * {lines}))"
        reads, writes = os.pipe()
        os.close(reads)
        with os.fdopen(writes, "wb") as out:
            got = subprocess.run([sys.executable, "-c", code], stdout=out, stderr=subprocess.PIPE)
        assert (got.returncode, got.stderr) == (141, b"")


def test_no_config_is_one_line_that_names_one():
    got = call("main")
    assert got.returncode == 2 and "--config=quickstart" in got.stderr


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path):
    arguments = (
        "-m",
        "experiments.main",
        "--config=configs/quickstart.py",
        *FAST,
        "--config.warmup.num_rounds=3000",
        "--config.zo.num_rounds=1",
        "--config.run.rounds_per_jit=5",
        f"--workdir={tmp_path}",
    )
    metrics, rounds = tmp_path / "metrics.jsonl", 0
    deadline = time.monotonic() + 120
    for _ in range(2):
        with commands.start(*arguments) as process:
            while not (metrics.exists() and metrics.read_text().count("\n") >= rounds + 5):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
            assert "run the same command" in process.stderr and str(tmp_path) in process.stderr
        rounds = metrics.read_text().count("\n")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row["round"] for row in rows] == list(range(1, len(rows) + 1))


def test_costs_prints_formula_and_measurement_of_both_phases():
    got = call("costs", "--config=configs/quickstart.py", *FAST)
    assert got.returncode == 0, got.stderr
    assert "12 B" in got.stdout and "240 B" in got.stdout and "warmup" in got.stdout


COMMANDS = sorted(
    path.stem
    for path in (commands.ROOT / "experiments").glob("*.py")
    if "cli.run(main)" in path.read_text()
)


@pytest.mark.parametrize("argument, status", [("--help", 0), ("--no_such_flag=1", 2)])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_a_misspelt_flag_do_without_jax(command, argument, status):
    """Which takes seconds to import."""
    program = [sys.executable, "-X", "importtime", "-m", f"experiments.{command}", argument]
    done = subprocess.run(program, cwd=commands.ROOT, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "absl.flags" in imported
    assert not imported & {"jax", "matplotlib", "numpy"}
