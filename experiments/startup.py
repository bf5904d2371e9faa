"""The first moments of a command. Every command imports this first, so it imports nothing slow.

Imports take seconds, and a Ctrl-C during one would surface as whatever error that import makes of
it. Until ``cli.run`` takes over, a signal ends the process in one line. A process that a sweep
started also begins to watch its parent here.
"""

import gc
import os
import pathlib
import signal
import sys
import threading
import time

from zo_fl.host.signals import end_at_signals

PARENT = "ZO_FL_PARENT"  # environment variable: the process to end with
_POLL_SECONDS = 1.0


def begin(package: str) -> None:
    """Prepares the process if it runs a command of ``package``."""
    if _is_command(package) and threading.current_thread() is threading.main_thread():
        # Imports and traces make a million objects that stay. Looking for garbage among them after
        # every 700 took a fifth of the time to the first round.
        gc.set_threshold(50_000, 20, 50)
        end_at_signals()
        if PARENT in os.environ:
            parent = int(os.environ.pop(PARENT))
            threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """Sends SIGTERM to this process when its parent is gone, however that ended.

    Linux's PR_SET_PDEATHSIG would come once for each thread of a dying parent, and a second signal
    stops a run without saving; hence a look every second.
    """
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _is_command(package: str) -> bool:
    """Returns whether this is ``python -m PACKAGE.COMMAND``, or the console script."""
    given = sys.orig_argv
    after = given.index("-m") + 1 if "-m" in given else len(given)
    is_module = any(name.startswith(f"{package}.") for name in given[after : after + 1])
    return is_module or any(pathlib.Path(name).name == "zo-fl" for name in given[:2])
