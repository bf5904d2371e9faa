"""The commands as a user types them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import cli
from zo_fl.core.errors import ConfigError
from zo_fl.host.files import StorageError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FAST = (
    "--config.data.name=synthetic",
    "--config.model.name=mlp",
    "--config.model.norm=none",
    "--config.run.num_devices=1",
)


def command(module, *arguments):
    return [sys.executable, "-m", f"experiments.{module}", *arguments]


def call(module, *arguments):
    return subprocess.run(
        command(module, *arguments), cwd=ROOT, capture_output=True, text=True, timeout=300
    )


BAD_INPUT = (
    (("--config.zo.epz=1",), "unknown field config.zo.epz; did you mean config.zo.eps"),
    (("--config.zo.eps=abc",), "config.zo.eps='abc' is not allowed; allowed: a number above 0"),
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

# Imports once, which takes seconds, and has a fork of itself run each command.
FORKS = """
import json, os, sys
import experiments.main
for number, arguments in enumerate(json.load(sys.stdin)):
    child = os.fork()
    if not child:
        for stream in (1, 2):
            os.dup2(os.open(f"{number}.{stream}", os.O_CREAT | os.O_WRONLY), stream)
        sys.argv = ["experiments.main", *arguments]
        try:
            experiments.main.run()
        except SystemExit as end:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(end.code)
        os._exit(99)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What each bad input is answered: (status, stdout, stderr)."""
    folder = tmp_path_factory.mktemp("answers")
    given = [
        ["--config=quickstart", f"--workdir={folder / 'run'}", *arguments]
        for arguments, _ in BAD_INPUT
    ]
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=300,
    )
    statuses = list(map(int, ended.stdout.split()))
    assert len(statuses) == len(given), ended.stderr
    assert not (folder / "run").exists()
    return [
        (status, *((folder / f"{number}.{stream}").read_text() for stream in (1, 2)))
        for number, status in enumerate(statuses)
    ]


@pytest.mark.parametrize("number", range(len(BAD_INPUT)), ids=lambda n: BAD_INPUT[n][0][-1])
def test_bad_input_is_one_line_and_status_2_and_writes_nothing(answers, number):
    status, stdout, stderr = answers[number]
    assert status == 2, stderr
    assert stdout == "" and stderr.count("\n") == 1, stderr
    assert BAD_INPUT[number][1] in stderr


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


def test_no_config_is_one_line_that_names_one():
    got = call("main")
    assert got.returncode == 2 and "--config=quickstart" in got.stderr


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path):
    arguments = command(
        "main",
        "--config=configs/quickstart.py",
        *FAST,
        "--config.warmup.num_rounds=3000",
        "--config.zo.num_rounds=1",
        "--config.run.rounds_per_jit=5",
        f"--workdir={tmp_path}",
    )
    process = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 5):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command" in message and str(tmp_path) in message
    rounds = metrics.read_text().count("\n")
    resumed = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.DEVNULL)
    while metrics.read_text().count("\n") <= rounds:
        assert resumed.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    resumed.send_signal(signal.SIGINT)
    assert resumed.wait(timeout=60) == 130
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row["round"] for row in rows] == list(range(1, len(rows) + 1))


def test_costs_prints_formula_and_measurement_of_both_phases():
    got = call("costs", "--config=configs/quickstart.py", *FAST)
    assert got.returncode == 0, got.stderr
    assert "12 B" in got.stdout and "240 B" in got.stdout and "warmup" in got.stdout
