"""The first moments of a command: imported before anything else of it, and imports nothing slow.

Until ``cli.run`` takes over, imports of seconds are under way, in which a Ctrl-C would surface as
whatever error the import that it hit makes of it: here it ends the process in one line. A process
that a sweep has started also learns here to end with it.
"""

import os
import pathlib
import signal
import sys
import threading
import time

PARENT = "ZO_FL_PARENT"  # environment variable: the process to end with
INTERRUPTED = 130
_POLL_SECONDS = 1.0


def begin(package: str) -> None:
    """Prepares the process if it is one of the commands of ``package``."""
    if _is_command(package) and threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            # What is ignored stays so: nohup ignores SIGHUP, a shell's & SIGINT.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _end)
        if PARENT in os.environ:
            end_with(int(os.environ.pop(PARENT)))


def end_with(parent: int) -> None:
    """Has this process told to stop, by SIGTERM, when its parent is gone, however that ended.

    By looking every second, not by Linux's PR_SET_PDEATHSIG: that comes once for each thread of a
    dying parent, and a second signal stops a run without saving.

    Args:
      parent: the process that started this one.
    """
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _is_command(package: str) -> bool:
    """Returns whether this is ``python -m PACKAGE.COMMAND``, or the console script."""
    given = sys.orig_argv
    after = given.index("-m") + 1 if "-m" in given else len(given)
    is_module = any(name.startswith(f"{package}.") for name in given[after : after + 1])
    return is_module or any(pathlib.Path(name).name == "zo-fl" for name in given[:2])


def _end(number: int, frame: object) -> None:
    # A second signal between the line and the end would say it again.
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)
