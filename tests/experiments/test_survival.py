"""Commands that are told to stop, or killed, at any moment: stories of real processes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import zo_fl
from tests import tiny
from zo_fl import config as configs
from zo_fl import train
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
    """Starts endless commands, none of which outlives the test."""
    with contextlib.ExitStack() as stack:

        def begin(module, *arguments):
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", f"experiments.{module}", *ENDLESS, *arguments],
                    cwd=ROOT,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            return process

        yield begin


def wait_for(condition, *processes):
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), processes[0].stderr.read()
        time.sleep(0.02)


def catches(process, number):
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{process.pid}/status")
    caught = next(line for line in status.read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux who catches what")
@pytest.mark.parametrize("seconds", (0.0, 0.7, 1.4, 2.1))
@pytest.mark.parametrize("numbers", ((signal.SIGTERM,), (signal.SIGINT, signal.SIGINT)))
def test_a_signal_before_training_is_one_line_and_130(start, tmp_path, seconds, numbers):
    process = start("main", f"--workdir={tmp_path / 'run'}")
    wait_for(lambda: catches(process, signal.SIGTERM), process)
    time.sleep(seconds)
    for number in numbers:
        process.send_signal(number)
    _, said = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130, said
    assert said.count("\n") == 1, said


SWEEP = """
from zo_fl.config.sweeps import Point, Sweep

def get_sweep(config):
    return Sweep("an endless run", "", [Point("a", "c", {"algorithm": "fedavg"})])
"""


def test_the_run_of_a_sweep_ends_with_it_and_it_goes_on_where_that_was(start, tmp_path):
    sweep = tmp_path / "endless.py"
    sweep.write_text(SWEEP)
    folder = tmp_path / "runs" / "endless" / "a--c" / "0"
    arguments = (f"--sweep={sweep}", "--seeds=1", f"--workdir={tmp_path / 'runs'}")

    def owner():
        return json.loads((folder / ".owner.json").read_text())["pid"]

    def rows():
        path = folder / "metrics.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    process, saved, seen = start("sweep", *arguments), 0, set()
    for number in (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGHUP):
        wait_for(lambda: rows() > saved, process)  # noqa: B023
        child = owner()
        assert child not in seen
        if not seen:
            second = start("sweep", *arguments)
            _, said = second.communicate(timeout=TIMEOUT)
            assert second.returncode == 2 and said.count("\n") == 1, said
            assert f"in use by process {process.pid}" in said
        seen.add(child)
        process.send_signal(number)
        _, said = process.communicate(timeout=TIMEOUT)
        if number == signal.SIGHUP:
            assert process.returncode == 130 and "to resume" in said
            break
        wait_for(lambda: not alive(child))  # noqa: B023
        # It has saved where it stopped: nothing half-written, no row without its checkpoint.
        saved = max(int(path.name) for path in (folder / "checkpoints" / "rounds").iterdir())
        assert saved == rows()
        process = start("sweep", *arguments)
    assert not any(map(alive, seen))
    rounds = [row["round"] for row in read_metrics(folder / "metrics.jsonl")]
    assert rounds == list(range(1, len(rounds) + 1))


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# Imports once and has forks of itself run, 20 of which it kills a random time after they have
# written something.
KILLS = """
import json, os, random, signal, sys, time
from pathlib import Path
from zo_fl import config as configs
from zo_fl import train

folder, config, draws = Path(sys.argv[1]), json.load(sys.stdin), random.Random(0)

def size():
    path = folder / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0

def begin():
    child = os.fork()
    if not child:
        train.run(config, folder, quiet=True)
        os._exit(0)
    return child

kills = 0
while kills < 20:
    child, before = begin(), size()
    while size() <= before and not os.waitpid(child, os.WNOHANG)[0]:
        time.sleep(0.002)
    time.sleep(draws.uniform(0, 0.15))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kills += 1
assert not (folder / "summary.json").exists(), "it ended before it was killed 20 times"
assert os.waitstatus_to_exitcode(os.waitpid(begin(), 0)[1]) == 0
print(kills)
"""


def test_a_run_that_is_killed_20_times_ends_as_one_that_never_was(tmp_path):
    config = tiny.config(
        "zowarmup",
        warmup__num_rounds=20,
        zo__num_rounds=100,
        run__rounds_per_jit=1,
        run__eval_every=50,
    )
    # What other tests have registered beside is not known to another process.
    config = configs.read_by(config) | {"run": config["run"]}
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLS, str(tmp_path / "killed")],
        cwd=ROOT,
        input=json.dumps(config),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert told.stdout == "20\n", told.stderr
    config["run"] |= {"rounds_per_jit": 50, "checkpoint_every": 50}
    train.run(config, tmp_path / "whole", quiet=True)
    rows = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(path)]
        for path in (tmp_path / name / "metrics.jsonl" for name in ("killed", "whole"))
    ]
    assert rows[0] == rows[1]
    models = (jax.tree.leaves(zo_fl.load(tmp_path / name).params) for name in ("killed", "whole"))
    for one, other in zip(*models, strict=True):
        np.testing.assert_array_equal(one, other)
