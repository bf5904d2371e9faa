"""Commands that are told to stop, or killed, at any moment: stories of real processes."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import zo_fl
from tests import commands, tiny
from zo_fl import api as train
from zo_fl import config as configs
from zo_fl.host.metrics import read_metrics

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TIMEOUT = 120  # seconds, of anything here
ENDLESS = (
    "--config=configs/quickstart.py",
    "--config.data.name=synthetic",
    "--config.model.name=mlp",
    "--config.model.norm=none",
    "--config.run.num_devices=1",
    "--config.run.rounds_per_jit=5",
    "--config.run.checkpoint_every=5",
    "--config.warmup.num_rounds=30000",
)


@pytest.fixture
def start():
    """Starts commands, none of which outlives the test."""
    with contextlib.ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(commands.start(*arguments))


def wait_for(condition, *processes, pause=0.01):
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), processes[0].stderr
        time.sleep(pause)


def catches(process, number):
    """Returns whether a process has a handler for a signal."""
    status = Path(f"/proc/{process.pid}/status")
    caught = next(line for line in status.read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


asks_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux")


@asks_linux
@pytest.mark.parametrize(
    ("seconds", "numbers"),
    ((0.0, [signal.SIGTERM]), (0.5, [signal.SIGINT] * 2)),
)
def test_a_signal_before_training_is_one_line_and_130(start, tmp_path, seconds, numbers):
    process = start("-m", "experiments.main", *ENDLESS, f"--workdir={tmp_path / 'run'}")
    wait_for(lambda: catches(process, signal.SIGTERM), process)
    time.sleep(seconds)
    for number in numbers:
        process.send_signal(number)
    assert process.wait(TIMEOUT) == 130, process.stderr
    assert process.stderr.count("\n") == 1, process.stderr


@asks_linux
def test_a_signal_during_imports_ends_in_one_line_and_130():
    """In a Python of its own: one that ``commands`` starts has nearly everything imported."""
    command = [sys.executable, "-m", "experiments.sweep"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: catches(process, signal.SIGTERM))
        time.sleep(0.2)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert process.stderr.read() == "interrupted\n"
    assert process.returncode == 130


SWEEP = """
from zo_fl.config.sweeps import Point, Sweep

def get_sweep(config):
    return Sweep("an endless run", "", [Point("a", "c", {"algorithm": "fedavg"})])
"""


@pytest.mark.nightly
def test_the_run_of_a_sweep_ends_with_it_and_it_goes_on_where_that_was(start, tmp_path):
    sweep = tmp_path / "endless.py"
    sweep.write_text(SWEEP)
    folder = tmp_path / "runs" / "endless" / "a--c" / "0"
    command = ("-m", "experiments.sweep", *ENDLESS, f"--sweep={sweep}", "--seeds=1")
    command = (*command, f"--workdir={tmp_path / 'runs'}")

    def owner():
        return json.loads((folder / ".owner.json").read_text())["pid"]

    def rows():
        path = folder / "metrics.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    process, saved, seen = start(*command), 0, set()
    for number in (signal.SIGKILL, signal.SIGHUP):
        wait_for(lambda: rows() > saved, process)  # noqa: B023
        child = owner()
        assert child not in seen
        if not seen:
            second = start(*command)
            assert second.wait(TIMEOUT) == 2 and second.stderr.count("\n") == 1, second.stderr
            assert f"in use by process {process.pid}" in second.stderr
        seen.add(child)
        process.send_signal(number)
        process.wait(TIMEOUT)
        if number == signal.SIGHUP:
            assert process.returncode == 130 and "to resume" in process.stderr
            break
        wait_for(lambda: not alive(child))  # noqa: B023
        # It has saved where it stopped: nothing half-written, no row without its checkpoint.
        saved = max(int(path.name) for path in (folder / "checkpoints" / "rounds").iterdir())
        assert saved == rows()
        process = start(*command)
    assert not any(map(alive, seen))
    rounds = [row["round"] for row in read_metrics(folder / "metrics.jsonl")]
    assert rounds == list(range(1, len(rounds) + 1))


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


RUN = """
import json, sys
from zo_fl import api as train
train.run(json.loads(sys.argv[1]), sys.argv[2], quiet=True)
"""


def test_a_run_that_is_killed_at_any_moment_ends_as_one_that_never_was(tmp_path):
    often = dict(run__rounds_per_jit=1, run__checkpoint_every=1, run__eval_every=50)
    config = tiny.config("zo", zo__num_rounds=40, **often)
    # What other tests have registered beside is not known to another process.
    config = configs.read_by(config) | {"run": config["run"]}
    path, draws = tmp_path / "killed", random.Random(0)
    command, saved = ("-c", RUN, json.dumps(config), path), path / "checkpoints" / "rounds"

    def rows():
        metrics = path / "metrics.jsonl"
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    def names():
        return os.listdir(saved) if saved.exists() else []

    moments = (
        lambda before: rows() > before,  # not saved yet
        lambda before: any(not name.isdigit() for name in names()),  # half saved
        lambda before: any(name.isdigit() and int(name) > before for name in names()),
    )
    for moment in moments:
        before = rows()
        with commands.start(*command) as process:
            wait_for(lambda: rows() > before, process)  # noqa: B023
            time.sleep(draws.uniform(0, 0.05))
            before = rows()
            wait_for(lambda: moment(before), process, pause=0)  # noqa: B023
        assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    last = commands.run(*command)
    assert last.returncode == 0, last.stderr
    config["run"] |= {"checkpoint_every": 50}
    train.run(config, tmp_path / "whole", quiet=True)
    rows = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(path)]
        for path in (tmp_path / name / "metrics.jsonl" for name in ("killed", "whole"))
    ]
    assert rows[0] == rows[1]
    models = (jax.tree.leaves(zo_fl.load(tmp_path / name).params) for name in ("killed", "whole"))
    for one, other in zip(*models, strict=True):
        np.testing.assert_array_equal(one, other)
