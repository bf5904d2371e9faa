"""Commands as ``python`` runs them, in forks of a process that has imported what takes seconds.

A test process has one such server, from its first command on, which ends with it. The server
imports nothing of ``experiments``, which takes over the signals when it is imported, and starts no
JAX backend: a command's own XLA_FLAGS count. JAX_... are what they were at the first command.
"""

import functools
import gc
import importlib
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import warnings
from multiprocessing import Pipe, connection, reduction
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMPORTED = ("scipy.special", "matplotlib.backends.backend_agg", "zo_fl.api", "zo_fl.saved_model")


class start:
    """``python ARGUMENTS``, the first of which is -m or -c, like a Popen; its block kills it."""

    def __init__(self, *arguments, cwd=ROOT, env=None):
        self.args, self.returncode = ["python", *map(str, arguments)], None
        self._folder = tempfile.TemporaryDirectory()
        self._channel, theirs = Pipe()
        with theirs:
            reduction.send_handle(_server(), theirs.fileno(), None)
        self._channel.send((self.args, cwd, dict(env or os.environ), self._folder.name))
        self.pid = self._channel.recv()

    stdout = property(lambda self: Path(self._folder.name, "1").read_text(), doc="Until now.")
    stderr = property(lambda self: Path(self._folder.name, "2").read_text(), doc="Until now.")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.send_signal(signal.SIGKILL)
        self.wait()
        self._channel.close()
        self._folder.cleanup()

    def poll(self, timeout=0):
        if self.returncode is None and self._channel.poll(timeout):
            self.returncode = os.waitstatus_to_exitcode(self._channel.recv())
        return self.returncode

    def wait(self, timeout=None):
        if self.poll(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)


def run(*arguments, timeout=300, **settings):
    """Returns what ``subprocess.run`` does, told to capture text."""
    with start(*arguments, **settings) as it:
        return subprocess.CompletedProcess(it.args, it.wait(timeout), it.stdout, it.stderr)


@functools.cache
def _server():
    """Starts the server and returns the connection to it, at whose end it ends."""
    ours, theirs = Pipe()
    command = [sys.executable, "-m", "tests.commands"]
    with theirs:  # of another session: a terminal's Ctrl-C is for the tests
        _server.process = subprocess.Popen(
            command, cwd=ROOT, stdin=theirs, stdout=subprocess.DEVNULL, start_new_session=True
        )
    return ours


def _fork():
    with warnings.catch_warnings(action="ignore"):  # JAX's, of threads that it does not have yet
        return os.fork()


def _serve():
    """Forks for every command one that waits for it, and that one the command: returns there."""
    control = connection.Connection(os.dup(0))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # none waits for those that wait
    gc.set_threshold(100_000, 50, 100)  # as in conftest
    gc.freeze()  # looking through all that was imported takes most of a small command's end
    while True:
        try:
            handle = reduction.recv_handle(control)
        except EOFError:
            sys.exit()
        with connection.Connection(handle) as channel:
            if not _fork():
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                sys.orig_argv, cwd, env, folder = channel.recv()
                for number, path in enumerate((os.devnull, f"{folder}/1", f"{folder}/2")):
                    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
                ended, open_until_then = os.pipe()
                if not (child := _fork()):
                    break
                os.close(open_until_then)
                channel.send(child)
                if channel in connection.wait((channel, ended)):  # the tests were killed
                    os.kill(child, signal.SIGKILL)
                else:
                    channel.send(os.waitpid(child, 0)[1])
                os._exit(0)
    control.close()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    return sys.orig_argv[1:]


if __name__ == "__main__":
    for name in IMPORTED:
        importlib.import_module(name)
    how, what, *sys.argv[1:] = _serve()
    sys.argv[0] = what if how == "-m" else how
    if how == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(what, {"__name__": "__main__"})
