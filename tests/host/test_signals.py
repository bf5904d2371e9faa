"""A signal to stop is not lost, wherever it arrives."""

import signal
import time

import pytest

from zo_fl.host import signals


@pytest.mark.parametrize("number", signals.STOPPING)
def test_a_signal_to_stop_raises_keyboard_interrupt(number):
    with pytest.raises(KeyboardInterrupt), signals.interrupting_signals():
        signal.raise_signal(number)
        time.sleep(5)


@pytest.mark.slow
def test_one_that_arrives_where_exceptions_are_not_heard_is_raised_after_that():
    heard = []

    class Thing:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)
            heard.append("went on")

    with pytest.raises(KeyboardInterrupt), signals.interrupting_signals():
        Thing()
        assert heard == ["went on"]
        time.sleep(5)
