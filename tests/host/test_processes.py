"""Two processes of two devices each do what one process does, stop together and go on together."""

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

from tests import commands, tiny
from tests.test_run import rows_of
from zo_fl import api
from zo_fl.engine.fields import ConfigError
from zo_fl.host import folder, processes

pytestmark = pytest.mark.slow

TIMEOUT = 120  # of anything here, seconds; all of it takes less than half as long
ROUNDS = 12
FIELDS = dict(
    data__num_clients=10,
    warmup__num_rounds=6,
    warmup__cohort_size=3,  # padded to four devices
    zo__num_rounds=ROUNDS - 6,
    zo__cohort_size=6,
    zo__lr=1e-4,
    run__num_devices="auto",
    run__checkpoint_every=4,
    run__eval_every=8,
)

PROGRAM = """
import json, sys
import jax
address, index, path, config = sys.argv[1:]
jax.distributed.initialize(address, 2, int(index))
import zo_fl
try:
    zo_fl.run(json.loads(config), path)
except zo_fl.Interrupted as stop:
    print(stop, file=sys.stderr)
    sys.exit(130)
except zo_fl.ConfigError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""


@contextlib.contextmanager
def launched(path, **of_second):
    """Yields two processes; none outlives the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    # Compiled as what they are compared with is; of two flags the later one counts.
    xla = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    env = os.environ | {"XLA_FLAGS": xla}
    with contextlib.ExitStack() as stack:
        both = []
        for index, changes in enumerate(({}, of_second)):
            config = json.dumps(tiny.config(**FIELDS | changes))
            command = ("-c", PROGRAM, address, index, path, config)
            both.append(stack.enter_context(commands.start(*command, env=env)))
        yield both


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
    built = tiny.build(**FIELDS | {"run__num_devices": 1})
    done, state, _ = tiny.latest(path, tiny.start(built, built.phases[-1]))
    assert done == ROUNDS
    return jax.tree.leaves(state.params)


class Story(NamedTuple):
    """What happened to a run of two processes; an ending is (status, stdout, stderr) of each."""

    path: Path
    interrupted: list[tuple[int, str, str]]
    done: int
    finished: list[tuple[int, str, str]]


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A run of which one process got a signal; then all was started again."""
    path = tmp_path_factory.mktemp("story")
    with launched(path) as both:
        wait_for_rows(path, 2, both)
        both[1].send_signal(signal.SIGINT)
        interrupted = ended(both)
    done = len(rows_of(path))
    with launched(path) as both:
        return Story(path, interrupted, done, ended(both))


def test_a_signal_to_one_process_saves_and_stops_both(story):
    for status, _, message in story.interrupted:
        assert status == 130 and f"stopped after round {story.done} of {ROUNDS}" in message
    assert 2 <= story.done < ROUNDS


def test_the_first_process_prints_and_writes_and_the_other_is_silent(story):
    (status, printed, errors), (other_status, other_printed, other_errors) = story.finished
    assert (status, other_status, errors + other_errors) == (0, 0, "")
    assert f"round {ROUNDS}/{ROUNDS}" in printed
    # The CPU's own collectives announce themselves, in pieces that threads interleave.
    said = [line for line in other_printed.split("\n") if line.strip()]
    assert not [line for line in said if "[Gloo]" not in line and "peer ranks" not in line]
    assert len(list((story.path / "tb").iterdir())) == 2  # a file a start
    devices = json.loads((story.path / "config.json").read_text())["provenance"]["devices"]
    assert (devices["count"], devices["processes"]) == (4, 2)


def test_it_ends_as_one_process_does_that_never_stopped(story, tmp_path):
    api.run(tiny.config(**FIELDS | {"run__num_devices": 1}), tmp_path, quiet=True)
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


@pytest.mark.nightly
def test_processes_that_were_killed_go_on(story, tmp_path):
    with launched(tmp_path) as both:
        wait_for_rows(tmp_path, 1, both)
        both[1].send_signal(signal.SIGKILL)  # and the other at the end of the block
    assert not (tmp_path / "summary.json").exists()
    with launched(tmp_path) as both:
        assert [status for status, *_ in ended(both)] == [0, 0]
    assert rows_of(tmp_path) == rows_of(story.path)


def test_different_configs_end_both_processes_in_one_line(tmp_path):
    with launched(tmp_path / "run", seed=1) as both:
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


def test_an_error_of_one_process_is_raised_on_all(monkeypatch):
    monkeypatch.setattr(processes, "several", lambda: True)
    monkeypatch.setattr(processes, "_texts", lambda text: [text, "no such data"])
    with pytest.raises(ConfigError, match="^process 1: no such data$"), processes.agreed():
        pass
    with pytest.raises(ConfigError, match="^my own$"), processes.agreed():
        raise ConfigError("my own")


def test_a_folder_that_is_not_shared_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="share its file system; change --workdir"):
        folder.wait_until_seen(tmp_path, seconds=0.0)
    (tmp_path / "config.json").touch()
    folder.wait_until_seen(tmp_path, seconds=0.0)
