"""A cache of arrays on disk: written whole or not at all, memory-mapped when read.

A source may lie in a read-only place, so decoded arrays go to ``$ZO_FL_CACHE``, else to
``~/.cache/zo_fl``: one folder an entry, one ``.npy`` file an array, ``meta.json`` beside them.
Entries are never changed once written, and may be deleted at any time. Sizes and checksums of the
arrays are in ``meta.json``: sizes, headers and the sums of small arrays are compared whenever an
entry is read, those of large ones once a day. A damaged entry is written anew.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from zo_fl.data import leftovers, progress
from zo_fl.engine.errors import ConfigError

ENV = "ZO_FL_CACHE"
_SMALL = 1 << 20  # bytes whose sum takes a millisecond
# What reading files of arbitrary content raises.
_DAMAGES = (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError)
_DAY = 86400.0  # seconds
_VERIFIED = "verified"  # a file in the entry, as old as the last look at all sums
_FORMAT = 2  # part of each fingerprint: raise it when what is written changes


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


def read(key: str, verify: bool = False) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Returns ``(arrays, meta)`` of an entry, the arrays memory-mapped read-only; None if absent.

    An entry that is not what was written counts as absent, which is said in a line.

    Args:
      key: name of the entry.
      verify: whether to compare all sums, whenever that was done last.
    """
    folder = root() / key
    if not folder.exists():
        return None
    try:
        return _checked(folder, verify)
    except _DAMAGES as error:
        progress.say(f"the cache entry {folder} is damaged ({error}) and is written anew")
        return None


def read_entry(
    folder: pathlib.Path, verify: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns ``(arrays, meta)`` of an entry that was carried to another place; see ``read``.

    Raises:
      ConfigError: it is damaged.
    """
    try:
        return _checked(folder, verify)
    except _DAMAGES as error:
        raise ConfigError(f"{folder} is damaged ({error}); bring it again") from error


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
    leftovers.remove(root())
    temporary = leftovers.temporary(root(), key)
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
    """Writes ``meta.json``: the names of the entry's arrays and JSON-able ``fields``.

    Args:
      folder: in which the arrays are whole.
      arrays: names of its ``.npy`` files.
      **fields: what else.
    """
    files = {name: folder / f"{name}.npy" for name in arrays}
    about = {n: {"bytes": p.stat().st_size, "sha256": sum_of(p)} for n, p in files.items()}
    meta = {"arrays": about, **fields}
    meta["sha256"] = _digest(meta)
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))
    (folder / _VERIFIED).touch()


def _checked(folder: pathlib.Path, verify: bool) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns an entry; raises one of many errors, with a few words, if it is damaged."""
    meta = json.loads((folder / "meta.json").read_text())
    if meta.pop("sha256") != _digest(meta):
        raise ValueError("meta.json is not what was written")
    due = verify or _age(folder / _VERIFIED) > _DAY
    arrays = {}
    for name, about in meta["arrays"].items():
        path = folder / f"{name}.npy"
        if path.stat().st_size != about["bytes"]:
            raise ValueError(f"{path.name} has another size than was written")
        if (due or about["bytes"] <= _SMALL) and sum_of(path) != about["sha256"]:
            raise ValueError(f"{path.name} is not what was written")
        arrays[name] = np.load(path, mmap_mode="r")
    if due:
        with contextlib.suppress(OSError):  # of somebody else's cache
            (folder / _VERIFIED).touch()
    return arrays, meta


def _digest(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def sum_of(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _age(path: pathlib.Path) -> float:
    """Returns the seconds since a file was touched; of none, for ever."""
    return time.time() - path.stat().st_mtime if path.exists() else float("inf")


def _publish(temporary: pathlib.Path, final: pathlib.Path) -> None:
    """Moves a finished folder to its name; a readable entry that is already there stays."""
    try:
        temporary.replace(final)
    except OSError:
        # A folder cannot replace one that is not empty: either another process was first, or a
        # damaged entry is in the way.
        try:
            _checked(final, verify=True)
        except _DAMAGES:
            shutil.rmtree(final, ignore_errors=True)
            temporary.replace(final)
