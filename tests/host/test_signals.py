"""The first signal to stop is noted or raised, a second one acts at once, ignored ones stay so."""

import signal
import threading
import time

import pytest

from zo_fl.host import signals


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
