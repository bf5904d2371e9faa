"""The first signal to stop is noted or raised, a second one acts at once, ignored ones stay so."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from zo_fl.host import signals

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("number", signals.STOPPING)
def test_a_signal_to_stop_raises_keyboard_interrupt(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), signals.interrupting_signals():
        signal.raise_signal(number)
        time.sleep(5)
    assert signal.getsignal(number) is before


def test_an_error_that_a_signal_became_on_its_way_is_a_keyboard_interrupt():
    with pytest.raises(KeyboardInterrupt), signals.interrupting_signals():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError from None
    with pytest.raises(ImportError), signals.interrupting_signals():
        raise ImportError


@pytest.mark.parametrize("number", signals.STOPPING)
def test_a_deferred_signal_is_noted_and_the_next_one_acts_at_once(number):
    with pytest.raises(KeyboardInterrupt), signals.interrupting_signals():
        with signals.deferred_signals() as received:
            assert not received()
            signal.raise_signal(number)
            assert received()
            signal.raise_signal(number)
            time.sleep(5)


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with signals.interrupting_signals(), signals.deferred_signals() as received:
            signal.raise_signal(signal.SIGTERM)
            assert not received()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_in_another_thread_no_signal_comes():
    found = []

    def work():
        with signals.deferred_signals() as received:
            found.append(received())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


INTERRUPTED_IN_EXEC = """
import sys
from zo_fl.host import signals

try:
    exec("raise KeyboardInterrupt")
except KeyboardInterrupt:
    signals.ignore_signals()
    sys.exit(130)
"""


def test_the_status_is_the_command_s_own_wherever_the_signal_was_heard(tmp_path):
    """Named tuples and data classes are made by ``exec``, of which Python keeps that it failed."""
    (tmp_path / "interrupted.py").write_text(INTERRUPTED_IN_EXEC)
    command = [sys.executable, "-m", "interrupted"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, timeout=60, check=False)
    assert ended.returncode == 130
