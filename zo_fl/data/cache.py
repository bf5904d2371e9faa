"""A cache of arrays on disk: written whole or not at all, memory-mapped when read.

A source may lie in a read-only place, so decoded arrays go to ``$ZO_FL_CACHE``, else to
``~/.cache/zo_fl``: one folder an entry, one ``.npy`` file an array, ``meta.json`` beside them.
Entries are never changed once written, and may be deleted at any time.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np

from zo_fl.core.errors import ConfigError

ENV = "ZO_FL_CACHE"
_FORMAT = 1  # part of each fingerprint: raise it when what is written changes


def root() -> pathlib.Path:
    """Returns the folder that holds all entries; it may not exist yet."""
    return pathlib.Path(os.environ.get(ENV) or "~/.cache/zo_fl").expanduser()


def fingerprint(folder: pathlib.Path) -> str:
    """Returns 16 hex digits that change when the folder's path or any file in it changes.

    Hashes names, sizes and modification times, not contents: it must take milliseconds for a data
    set of gigabytes.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    text = json.dumps([_FORMAT, str(folder.resolve()), stats])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read(key: str) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Returns ``(arrays, meta)`` of an entry, the arrays memory-mapped read-only; None if absent.

    An entry that cannot be read (a file deleted or cut short) counts as absent.
    """
    folder = root() / key
    try:
        meta = json.loads((folder / "meta.json").read_text())
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in meta["arrays"]}
    except (OSError, ValueError, KeyError):
        return None
    return arrays, meta


@contextlib.contextmanager
def writing(key: str, num_bytes: int) -> Iterator[pathlib.Path]:
    """Yields a new folder to fill with ``.npy`` files; it becomes entry ``key`` on a clean exit.

    The folder lies beside the entry and is moved in one step, so that a reader sees all or nothing.
    After an exception, Ctrl-C included, nothing is left. Of two processes that write the same key
    the first wins; the other drops its copy.

    Args:
      key: name of the entry.
      num_bytes: what will be written. Checked beforehand: a memory-mapped write to a full disk
        kills the process with SIGBUS instead of raising.

    Raises:
      ConfigError: the cache cannot be written, or lacks space.
    """
    temporary = root() / f".{key}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    try:
        try:
            temporary.mkdir(parents=True)
            free = shutil.disk_usage(temporary).free
        except OSError as error:
            raise ConfigError(
                f"cannot write the cache {root()} ({error.strerror}); "
                f"set the environment variable {ENV} to a writable folder"
            ) from error
        if free < num_bytes:
            raise ConfigError(
                f"the cache {root()} has {free / 1e9:.1f} GB free and the decoded data set takes "
                f"{num_bytes / 1e9:.1f} GB; set the environment variable {ENV} to a larger disk"
            )
        yield temporary
        _publish(temporary, root() / key)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_meta(folder: pathlib.Path, arrays: list[str], **fields: Any) -> None:
    """Writes ``meta.json``: the names of the entry's arrays and JSON-able ``fields``."""
    (folder / "meta.json").write_text(json.dumps({"arrays": arrays, **fields}, indent=1))


def _publish(temporary: pathlib.Path, final: pathlib.Path) -> None:
    """Moves a finished folder to its name; a readable entry that is already there stays."""
    try:
        temporary.replace(final)
    except OSError:
        # A folder cannot replace one that is not empty: either another process was first, or a
        # damaged entry is in the way.
        if read(final.name) is None:
            shutil.rmtree(final, ignore_errors=True)
            temporary.replace(final)
