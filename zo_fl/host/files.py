"""Files that are written whole or not at all, and what is said where they cannot be."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SPARE = 1 << 20  # bytes that what is written may take beside itself


class StorageError(OSError):
    """A file or folder that cannot be written: which one, why, and how much space is missing.

    The message is one line. Commands print it and exit with status 1; what was there is still
    there, and once it can be written the same command goes on.
    """

    def __str__(self) -> str:
        return str(self.strerror)

    @property
    def remedy(self) -> str:
        """What to do about it, in a few words."""
        return "make room for it" if self.errno in _FULL else "make it writable"


@contextmanager
def storing(path: Path, num_bytes: int = 0, *, any_error: bool = False) -> Iterator[None]:
    """Makes a ``StorageError`` of what the block raises because a path cannot be written.

    Args:
      path: file or folder.
      num_bytes: what is about to be written, looked for beforehand: some libraries leave half of
        it, or a core dump, on a full disk.
      any_error: whether the block is a library's that raises other errors than OSError too.
    """
    try:
        _check_space(path, num_bytes)
        yield
    except StorageError:
        raise
    except OSError as error:
        raise _storage_error(path, error.errno, error.strerror or str(error), num_bytes) from error
    except Exception as error:
        if not any_error:
            raise
        why = " ".join(str(error).split())[:200]
        raise _storage_error(path, errno.EIO, why, num_bytes) from error


def write_whole(path: Path, text: str) -> None:
    """Writes a text file so that every reader, whenever it looks, sees the old one or the new one.

    Raises:
      StorageError: it cannot be written; what was there is still there.
    """
    write_whole_bytes(path, text.encode())


def write_whole_bytes(path: Path, content: bytes) -> None:
    """Writes a file of bytes; see ``write_whole``."""
    temporary = path.with_name(path.name + ".partial")
    with storing(path, len(content)):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _check_space(path: Path, num_bytes: int) -> None:
    place = next((folder for folder in path.parents if folder.exists()), Path())
    if num_bytes and shutil.disk_usage(place).free < num_bytes + _SPARE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _storage_error(path: Path, number: int | None, why: str, num_bytes: int) -> StorageError:
    text = f"cannot write {path}: {why}"
    if number in _FULL:
        place = next((folder for folder in path.parents if folder.exists()), Path())
        text += f" ({num_bytes} bytes to be written, {shutil.disk_usage(place).free} free)"
    return StorageError(number or errno.EIO, text)
