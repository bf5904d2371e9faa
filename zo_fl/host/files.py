"""Files that are written whole or not at all, and folders that belong to one process.

The operating system holds a folder's lock while its process lives, and releases it when the process
is killed. Between machines this works on file systems with POSIX locks (NFS from version 4 on;
Lustre mounted with ``flock``).
"""

import datetime
import errno
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from zo_fl.engine.fields import ConfigError
from zo_fl.engine.fields import path_of as path_of  # of every path that a user gives
from zo_fl.host.units import is_number

_LOCK, _OWNER = ".lock", ".owner.json"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class StorageError(OSError):
    """A file or folder cannot be written; the message says which one and why, in one line.

    Its old content is still there. Once it can be written, the same command goes on.
    """

    def __str__(self) -> str:
        return str(self.strerror)

    @property
    def remedy(self) -> str:
        """Advice, in a few words."""
        return "make room for it" if self.errno in _FULL else "make it writable"


@contextmanager
def storing(path: Path, *, any_error: bool = False) -> Iterator[None]:
    """Turns an OSError of a block that writes a path into a ``StorageError`` that names it.

    With ``any_error`` it turns every exception: for libraries that raise others.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        if not (any_error or isinstance(error, OSError)):
            raise
        why = " ".join(str(error).split())[:200]
        number = errno.ENOSPC if os.strerror(errno.ENOSPC).lower() in why.lower() else errno.EIO
        if isinstance(error, OSError):
            number, why = error.errno or number, error.strerror or why
        raise StorageError(number, f"cannot write {path}: {why}") from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file so that every reader, whenever it looks, sees the old one or the new one.

    Raises:
      StorageError: it cannot be written; the old one is still there.
    """
    temporary = path.with_name(path.name + ".partial")
    with storing(path):
        try:
            with temporary.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_json(path: Path, content: Any) -> None:
    """Writes ``as_json(content)``, indented, as ``write_whole`` does."""
    write_whole(path, json.dumps(as_json(content), indent=2, allow_nan=False) + "\n")


def as_json(content: Any) -> Any:
    """Returns NumPy and JAX scalars as Python's, and floats that are not finite as None."""
    if isinstance(content, Mapping):
        return {name: as_json(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [as_json(value) for value in content]
    content = content.item() if hasattr(content, "item") else content
    return None if isinstance(content, float) and not is_number(content) else content


def read_json(path: Path, *names: str) -> dict[str, Any] | None:
    """Returns the object in a JSON file, which must have ``names``; None if there is no file.

    Raises:
      ConfigError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
    except ValueError:
        content = None
    if not isinstance(content, dict) or not content:
        why = "not a JSON object"
    elif missing := [name for name in names if name not in content]:
        why = f"no {missing[0]}"
    else:
        return content
    raise ConfigError(f"{path} is damaged: {why}; mend it, or choose another folder")


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Holds a folder, made if missing, for the block.

    Raises:
      ConfigError: another process, or thread, holds it, and the message says which; or it cannot
        be made.
      StorageError: the folder is there and cannot be written.
    """
    import filelock  # here: a tenth of a command's time to its help

    lock, is_new = filelock.FileLock(folder / _LOCK), not folder.is_dir()
    try:
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                raise ConfigError(
                    f"{folder} is in use by {_owner(folder)}; wait until it has ended, or change "
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


def wait_until_free(folder: Path, seconds: float) -> bool:
    """Waits for a folder's owner to end; returns whether it did, or there was none."""
    import filelock

    if not (folder / _LOCK).exists():
        return True
    try:
        with filelock.FileLock(folder / _LOCK).acquire(timeout=seconds, poll_interval=0.1):
            return True
    except filelock.Timeout:
        return False


def _owner(folder: Path) -> str:
    with suppress(OSError, ValueError, KeyError):
        about = json.loads((folder / _OWNER).read_text())
        return f"process {about['pid']} on {about['host']}, started {about['started']}"
    return "another process"
