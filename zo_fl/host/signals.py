"""Signals to stop: Ctrl-C, SIGTERM, and SIGHUP of a closed terminal.

A signal that is ignored stays ignored: ``nohup`` ignores SIGHUP, a shell's ``&`` SIGINT.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

INTERRUPTED = 130  # exit status
STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


@contextmanager
def deferred_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether a signal to stop came; a second one acts at once.

    Only the main thread can have handlers; in another one the function always returns False.
    """
    received = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore()

    restore = _handle(note)
    try:
        yield lambda: bool(received)
    finally:
        restore()


@contextmanager
def interrupting_signals() -> Iterator[None]:
    """Makes every signal to stop raise KeyboardInterrupt, as Ctrl-C does.

    While modules are imported it ends the process instead, with a line and status 130: extension
    modules of JAX crash when an exception comes into their import.
    """
    received = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        outer = frame
        while outer is not None:
            if outer.f_code.co_filename == "<frozen importlib._bootstrap>":
                _end(number, frame)
            outer = outer.f_back
        raise KeyboardInterrupt

    restore = _handle(interrupt)
    try:
        yield
    except Exception as error:
        if received:  # the interrupted code may have turned it into another error
            raise KeyboardInterrupt from error
        raise
    finally:
        restore()


def end_at_signals() -> None:
    """Makes every signal to stop end the process from now on, with one line and status 130."""
    _handle(_end)


def ignore_signals() -> None:
    """Ignores signals to stop from now on; the process is about to end, with a status of its own.

    Once a Ctrl-C has left code that ``exec`` compiled, as a named tuple's or a data class's,
    ``python -m`` ends by that signal, until other such code ends well.
    """
    _handle(signal.SIG_IGN)
    exec("")


def _end(number: int, frame: FrameType | None) -> None:
    # A second signal between the line and the end would print the line again.
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def _handle(handler: Any) -> Callable[[], None]:
    """Sets the handler of all signals that are not ignored; returns a function that undoes it."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    heard = [one for one in STOPPING if signal.getsignal(one) is not signal.SIG_IGN]
    earlier = {one: signal.signal(one, handler) for one in heard}

    def restore() -> None:
        for number, handler in earlier.items():
            signal.signal(number, handler)

    return restore
