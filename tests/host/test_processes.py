"""Two processes of two devices each do what one process does, die together and go on together."""

import contextlib
import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from absl.testing import flagsaver

from configs import quickstart
from experiments import distributed
from tests import commands, tiny
from tests.test_train import rows_of
from zo_fl import api as train
from zo_fl.engine.errors import ConfigError
from zo_fl.experiment import build
from zo_fl.host import processes, workdir

pytestmark = pytest.mark.slow

TIMEOUT = 120  # of anything here, seconds; all of it takes less than half as long
ROUNDS = 16
FIELDS = {
    "data.num_clients": 10,
    "data.high_fraction": 0.5,
    "model.name": "mlp",
    "model.norm": "none",
    "warmup.num_rounds": 4,
    "warmup.cohort_size": 3,  # padded to four devices
    "warmup.local_epochs": 1,
    "zo.num_rounds": ROUNDS - 4,
    "zo.cohort_size": 6,
    "zo.lr": 1e-4,
    "run.rounds_per_jit": 2,
    "run.checkpoint_every": 4,
    "run.eval_every": 8,
}


def config(**run):
    config = quickstart.get_config()
    config.update_from_flattened_dict(FIELDS)
    config.run.update(run)
    return config.to_dict()


@contextlib.contextmanager
def launched(path, *of_second):
    """Yields two processes; none outlives the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["-m", "experiments.main", "--config=configs/quickstart.py"]
    command += [f"--config.{name}={value}" for name, value in FIELDS.items()]
    command += [f"--workdir={path}", f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    # Compiled as what they are compared with is; of two flags the later one counts.
    xla = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    env = os.environ | {"XLA_FLAGS": xla}
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(commands.start(*command, f"--process_id={index}", *extra, env=env))
            for index, extra in enumerate(((), of_second))
        ]


def ended(both):
    """Waits for the processes to end, and returns ``[(status, stdout, stderr)]``."""
    return [(process.wait(TIMEOUT), process.stdout, process.stderr) for process in both]


def wait_for_rows(path, count, both):
    metrics, deadline = path / "metrics.jsonl", time.monotonic() + TIMEOUT
    while not (metrics.exists() and metrics.read_text().count("\n") >= count):
        assert all(process.poll() is None for process in both), ended(both)
        assert time.monotonic() < deadline
        time.sleep(0.01)


def final_params(path):
    built = build(config(num_devices=1))
    params, model_state = built.task.init(built.run_key)
    template = built.phases[-1].init(params, model_state)
    found = tiny.latest(path, template)
    assert found is not None and found[0] == ROUNDS
    return jax.tree.leaves(found[1].params)


class Story(NamedTuple):
    """What happened to a run of two processes; an ending is (status, stdout, stderr) of each."""

    path: Path
    interrupted: list[tuple[int, str, str]]
    done: int
    finished: list[tuple[int, str, str]]


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A run of which one process got a signal, and later died; then all was started again."""
    path = tmp_path_factory.mktemp("story")
    with launched(path) as both:
        wait_for_rows(path, 2, both)
        both[1].send_signal(signal.SIGINT)
        interrupted = ended(both)
    done = len(rows_of(path))
    with launched(path) as both:
        wait_for_rows(path, done + 1, both)
        both[1].send_signal(signal.SIGKILL)  # and the other with it
    assert not (path / "summary.json").exists()
    with launched(path) as both:
        return Story(path, interrupted, done, ended(both))


def test_a_signal_to_one_process_saves_and_stops_both(story):
    (status, _, message), (other_status, _, other_message) = story.interrupted
    assert (status, other_status) == (130, 130), message + other_message
    assert message.count("to resume") == 1 and other_message == ""
    assert 2 <= story.done < ROUNDS


def test_the_first_process_prints_and_writes_and_the_other_is_silent(story):
    (status, printed, errors), (other_status, other_printed, other_errors) = story.finished
    assert (status, other_status, errors + other_errors) == (0, 0, "")
    assert printed.count("results in") == 1 and f"round {ROUNDS}/{ROUNDS}" in printed
    # The CPU's own collectives announce themselves, in pieces that threads interleave.
    said = [line for line in other_printed.split("\n") if line.strip()]
    assert not [line for line in said if "[Gloo]" not in line and "peer ranks" not in line]
    assert len(list((story.path / "tb").iterdir())) == 3  # a file a start
    devices = json.loads((story.path / "config.json").read_text())["provenance"]["devices"]
    assert (devices["count"], devices["processes"]) == (4, 2)


def test_it_ends_as_one_process_does_that_never_stopped(story, tmp_path):
    train.run(config(num_devices=1), tmp_path, quiet=True)
    # Sums are added up in another order, and where a relu's input is within rounding of zero its
    # gradient is another: 3e-5 on some processors, where a round moves weights by 1e-2.
    for got, expected in zip(final_params(story.path), final_params(tmp_path), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-4)
    for got, expected in zip(rows_of(story.path), rows_of(tmp_path), strict=True):
        assert got.keys() == expected.keys() and got["phase"] == expected["phase"]
        for name in got.keys() - {"phase"}:
            np.testing.assert_allclose(got[name], expected[name], rtol=1e-3, err_msg=name)
    got, expected = (
        json.loads((path / "summary.json").read_text()) for path in (story.path, tmp_path)
    )
    assert got.keys() == expected.keys() and got["rounds"] == expected["rounds"] == ROUNDS


def test_different_configs_end_both_processes_in_one_line(tmp_path):
    with launched(tmp_path / "run", "--config.seed=1") as both:
        for status, _, message in ended(both):
            assert status == 2 and message.count("\n") == 1 and "different configs" in message
    assert not (tmp_path / "run").exists()


def test_alone_there_is_nothing_to_agree_upon():
    assert processes.is_first() and not processes.several()
    assert processes.any_of(True) and not processes.any_of(False)
    assert processes.of_first("text") == "text"
    processes.check_same({"a": 1}, "configs")
    with pytest.raises(ConfigError, match="as it is"), processes.agreed():
        raise ConfigError("as it is")


def test_without_a_cluster_distributed_is_one_line(tmp_path):
    command = ["-m", "experiments.main", "--config=configs/quickstart.py"]
    got = commands.run(*command, f"--workdir={tmp_path / 'run'}", "--distributed")
    assert got.returncode == 2 and got.stderr.count("\n") == 1 and "--coordinator" in got.stderr
    assert got.stdout == "" and not (tmp_path / "run").exists()


def test_an_error_of_one_process_is_raised_on_all(monkeypatch):
    monkeypatch.setattr(processes, "several", lambda: True)
    monkeypatch.setattr(processes, "_texts", lambda text: [text, "no such data"])
    with pytest.raises(ConfigError, match="^process 1: no such data$"), processes.agreed():
        pass
    with pytest.raises(ConfigError, match="^my own$"), processes.agreed():
        raise ConfigError("my own")


def test_a_folder_that_is_not_shared_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="share its file system; change --workdir"):
        workdir.wait_until_seen(tmp_path, seconds=0.0)
    (tmp_path / "config.json").touch()
    workdir.wait_until_seen(tmp_path, seconds=0.0)


@pytest.mark.parametrize(
    ("flags", "message"),
    (
        (dict(process_id=0), "--process_id needs --coordinator and --num_processes as well"),
        (dict(coordinator="h", num_processes=2, process_id=0), "--coordinator=h is not HOST:PORT"),
        (dict(coordinator="h:1", num_processes=2, process_id=2), "--process_id=2 is outside"),
        (dict(coordinator="h:1", num_processes=1, process_id=-1), "--process_id=-1 is outside"),
    ),
)
def test_flags_that_do_not_tell_who_is_who_are_refused(flags, message):
    if "coordinator" not in distributed.flags.FLAGS:
        distributed.define_flags()
    distributed.flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(**flags), pytest.raises(ConfigError, match=message) as caught:
        distributed.join()
    assert "\n" not in str(caught.value)
