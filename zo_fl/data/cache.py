"""A cache of decoded arrays on disk, and temporary folders that a killed process leaves behind.

An entry is a folder in ``$ZO_FL_CACHE`` (default ``~/.cache/zo_fl``). It holds one ``.npy`` file
for each array, and ``meta.json`` with the checksums of these files. An entry is filled in a
temporary folder, renamed when it is complete, and never changes after that. Every read compares the
checksums; a damaged entry is removed and made again. Users may delete entries.
"""

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from zo_fl.data import progress
from zo_fl.engine.fields import ConfigError, path_of

ENV = "ZO_FL_CACHE"
_FORMAT = 2  # part of each fingerprint: raise it when the content of entries changes
_TEMPORARY = re.compile(r"\..+\.(?P<host>[^.]+)\.(?P<pid>\d+)\.[0-9a-f]{8}")

Entry = tuple[dict[str, np.ndarray], dict[str, Any]]


def root() -> Path:
    """Returns the folder of all entries; it may not exist yet.

    Raises:
      ConfigError: the variable has no path of this machine.
    """
    if given := os.environ.get(ENV):
        return path_of(given)
    try:
        return path_of("~/.cache/zo_fl")
    except ConfigError:  # containers may have no home folder
        return Path(tempfile.gettempdir()) / "zo_fl"


def fingerprint(folder: Path) -> str:
    """Returns 16 hex digits that change when the path, or any file, of a source folder changes.

    The digits come from names, sizes and modification times. Hashing the contents would take
    seconds for a large data set.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    text = json.dumps([_FORMAT, str(folder.resolve()), stats])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read(key: str) -> Entry | None:
    """Returns the entry ``key``; None if it is absent, or was damaged and is now removed."""
    folder = root() / key
    if not folder.exists():
        return None
    try:
        return read_entry(folder)
    except ConfigError as error:
        progress.say(f"{error}; it is made again")
        shutil.rmtree(folder, ignore_errors=True)
        return None


def read_entry(folder: Path) -> Entry:
    """Returns the arrays, memory-mapped read-only, and the facts of an entry in any folder.

    Raises:
      ConfigError: the entry is damaged.
    """
    try:
        meta = json.loads((folder / "meta.json").read_text())
        if meta.pop("sha256") != _digest(meta):
            raise ValueError("meta.json has another checksum")
        arrays = {}
        for name, sums in meta["arrays"].items():
            path = folder / f"{name}.npy"
            if sum_of(path) != sums["sha256"]:
                raise ValueError(f"{path.name} has another checksum")
            arrays[name] = np.load(path, mmap_mode="r")
        return arrays, meta
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"the decoded data set {folder} is damaged ({error})") from error


@contextlib.contextmanager
def writing(key: str, num_bytes: int) -> Iterator[Path]:
    """Yields a temporary folder, which becomes the entry ``key`` if the block ends without error.

    Of two processes that write the same entry, the first one wins. There must be room for
    ``num_bytes`` before: a memory-mapped write to a full disk would kill the process.

    Raises:
      ConfigError: the cache cannot be written or lacks space.
    """
    remove_leftovers(root())
    temporary = temporary_folder(root(), key)
    try:
        try:
            temporary.mkdir(parents=True)
            if shutil.disk_usage(temporary).free < num_bytes:
                raise OSError(f"{num_bytes / 1e9:.1f} GB do not fit on its disk")
        except OSError as error:
            raise ConfigError(
                f"cannot write the cache {root()} ({error}); set the environment variable {ENV} to "
                "another folder"
            ) from error
        yield temporary
        with contextlib.suppress(OSError):  # another process was first
            temporary.replace(root() / key)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_meta(folder: Path, arrays: list[str], **facts: Any) -> None:
    """Writes ``meta.json`` with the checksums of an entry's ``.npy`` files and JSON-able facts."""
    sums = {name: {"sha256": sum_of(folder / f"{name}.npy")} for name in arrays}
    meta = {"arrays": sums, **facts}
    meta["sha256"] = _digest(meta)
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


def sum_of(path: Path) -> str:
    """Returns the SHA-256 of a file in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def temporary_folder(parent: Path, what: str) -> Path:
    """Returns the path of a new hidden folder, not made yet, whose name tells its owner."""
    return parent / f".{what}.{_host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"


def remove_leftovers(parent: Path) -> None:
    """Removes the temporary folders of processes of this machine that no longer run."""
    for path in parent.glob(".*") if parent.is_dir() else ():
        found = _TEMPORARY.fullmatch(path.name)
        if found and found["host"] == _host() and not _is_alive(int(found["pid"])):
            shutil.rmtree(path, ignore_errors=True)


def _digest(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _host() -> str:
    return platform.node().replace(".", "-") or "here"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
