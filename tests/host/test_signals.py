"""A signal to stop is not lost, wherever it arrives."""

import signal
import subprocess
import sys
import time
from importlib import machinery

import pytest

from zo_fl.host import signals


@pytest.mark.parametrize("number", signals.STOPPING)
def test_a_signal_to_stop_raises_keyboard_interrupt(number):
    with pytest.raises(KeyboardInterrupt), signals.interrupting_signals():
        signal.raise_signal(number)
        time.sleep(5)


class Thing:
    def __init__(self, heard):
        self.heard = heard

    def __del__(self):
        signal.raise_signal(signal.SIGINT)
        self.heard.append("went on")


def compare(heard):
    class Scalar:
        def __hash__(self):
            signal.raise_signal(signal.SIGINT)
            heard.append("went on")
            return 0

    assert {Scalar(): 1}


class Loader(machinery.ExtensionFileLoader):
    def exec_module(self, module):
        signal.raise_signal(signal.SIGINT)
        module.append("went on")


@pytest.mark.parametrize("act", (Thing, compare, Loader("a", "a.so").exec_module))
def test_one_that_arrives_where_exceptions_are_not_heard_is_raised_after_that(act):
    """In destructors, hashes, and where extension modules are imported."""
    heard, began = [], time.monotonic()
    with pytest.raises(KeyboardInterrupt), signals.interrupting_signals():
        act(heard)
        assert heard == ["went on"]
        time.sleep(60)
    assert time.monotonic() - began < 30


INTERRUPTED_IN_EXEC = """
import sys
from zo_fl.host import signals

try:
    exec("raise KeyboardInterrupt")
except KeyboardInterrupt:
    signals.ignore_signals()
    sys.exit(130)
"""


def test_the_status_is_the_commands_own_wherever_the_signal_was_heard(tmp_path):
    """Named tuples and data classes are made by ``exec``, of which Python keeps that it failed."""
    (tmp_path / "interrupted.py").write_text(INTERRUPTED_IN_EXEC)
    command = [sys.executable, "-m", "interrupted"]
    assert subprocess.run(command, cwd=tmp_path, timeout=60, check=False).returncode == 130
