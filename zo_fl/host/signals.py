"""Stopping when asked to: by Ctrl-C, by SIGTERM, by a terminal that was closed.

What was ignored when the process began stays so: ``nohup`` ignores SIGHUP, and a shell's ``&``
SIGINT.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader
from types import FrameType

STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
Handler = Callable[[int, FrameType | None], object]
# Python prints what the first two raise and goes on; JAX has one called at garbage collections. Of
# the others NumPy loses it, in comparing dtypes.
_UNHEARD = ("_xla_gc_callback", "__del__", "__eq__", "__hash__")
_AGAIN_SECONDS = 0.01


@contextmanager
def deferred_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether a signal to stop came; a second one acts at once.

    In another thread than the main one, which alone can have handlers, it is always False.
    """
    received = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore()

    restore = _set(handle)
    try:
        yield lambda: bool(received)
    finally:
        restore()


@contextmanager
def interrupting_signals() -> Iterator[None]:
    """Makes all signals to stop act like Ctrl-C: they raise KeyboardInterrupt."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        while frame is not None:
            if _is_unheard(frame):
                threading.Timer(_AGAIN_SECONDS, _send_main_thread, (number,)).start()
                return
            frame = frame.f_back
        raise KeyboardInterrupt

    restore = _set(interrupt)
    try:
        yield
    finally:
        restore()


def _is_unheard(frame: FrameType) -> bool:
    """Returns whether an exception that is raised within a frame may be lost there."""
    name = frame.f_code.co_name
    # Extension modules catch errors of what they import: those of MLIR lose a Ctrl-C.
    is_extension = isinstance(frame.f_locals.get("self"), ExtensionFileLoader)
    return name in _UNHEARD or (is_extension and name in ("create_module", "exec_module"))


def _send_main_thread(number: int) -> None:
    """Sends a signal such that the main thread wakes up, where the system can do that."""
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, number)
    else:
        signal.raise_signal(number)


def ignore_signals() -> None:
    """Ignores signals to stop from now on: the process is about to end anyway.

    With its own status, too: once a Ctrl-C has left code that ``exec`` compiled, as a named tuple's
    or a data class's, ``python -m`` ends by that signal, until other such code ends well.
    """
    _set(signal.SIG_IGN)
    exec("")


def _set(handler: Handler | signal.Handlers) -> Callable[[], None]:
    """Sets the handler of what is not ignored; returns what puts back the earlier ones."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    caught = [one for one in STOPPING if signal.getsignal(one) is not signal.SIG_IGN]
    earlier = {one: signal.signal(one, handler) for one in caught}

    def restore() -> None:
        for number, handler in earlier.items():
            signal.signal(number, handler)

    return restore
