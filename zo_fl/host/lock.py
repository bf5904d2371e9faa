"""One owner a folder: two runs in one would each destroy what the other writes.

The operating system holds the lock for as long as the process lives and releases it at a kill,
whatever stands in the files. Between machines it holds on network file systems with POSIX locks
(NFS from version 4 on; Lustre mounted with ``flock``); on others, as between the containers of some
clouds, only between the processes of one machine.
"""

import datetime
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from zo_fl.engine.errors import ConfigError
from zo_fl.host.files import StorageError, storing, write_whole

_LOCK, _OWNER = ".lock", ".owner.json"
_POLL_SECONDS = 0.1


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Holds a folder, which is made if missing, for the block.

    Raises:
      ConfigError: another process, or thread, holds it, says which one; or it cannot be made.
      StorageError: the folder is there and cannot be written.
    """
    lock, is_new = FileLock(folder / _LOCK), not folder.exists()
    try:
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise ConfigError(
                    f"{folder} is in use by {owner(folder)}; wait until it has ended, or change "
                    "--workdir"
                ) from None
    except StorageError as error:
        if not is_new:
            raise
        raise ConfigError(f"{error}; change --workdir") from None
    try:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        about = {"pid": os.getpid(), "host": platform.node(), "started": now}
        write_whole(folder / _OWNER, json.dumps(about) + "\n")
        yield
    finally:
        lock.release()


def owner(folder: Path) -> str:
    """Returns in words who holds a folder, or held it last."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        about = json.loads((folder / _OWNER).read_text())
        return f"process {about['pid']} on {about['host']}, started {about['started']}"
    return "another process"


def wait_until_free(folder: Path, seconds: float) -> bool:
    """Waits for a folder's owner to end, and returns whether it did; free if there is none."""
    if not (folder / _LOCK).exists():
        return True
    deadline = time.monotonic() + seconds
    while True:
        try:
            with FileLock(folder / _LOCK).acquire(timeout=0):
                return True
        except Timeout:
            if time.monotonic() > deadline:
                return False
        time.sleep(_POLL_SECONDS)
