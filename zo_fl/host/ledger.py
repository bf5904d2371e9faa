"""Rounds as what clients sent in them: with keys and the model at their start, all of phase two.

``ledger.msgpack`` has an entry a round of every phase that replays (``ClientStrategy.replays``):

    length u32, little-endian | msgpack {round, phase, arrays, previous}

``arrays`` are the leaves of the round's records (who took part, scalars, weights) and, where
statistics travel, of the new ones, by their place; those equal to the entry's before are left out.
``previous`` is the SHA-256 of the whole entry before, so that none can be changed, left out or put
elsewhere without its successor's noticing; the last one's effect is what ``--verify`` compares.
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import serialization

from zo_fl.engine.errors import ConfigError
from zo_fl.engine.types import PyTree
from zo_fl.host.files import storing, write_whole_bytes

FILE_NAME = "ledger.msgpack"
_LENGTH = struct.Struct("<I")
_NOTHING = b""


class Entry(NamedTuple):
    """One round.

    Attributes:
      round: of the run, from 1.
      phase: name.
      leaves: of what was recorded, in the order of ``jax.tree.leaves``.
      content: the bytes of the file, without their length.
    """

    round: int
    phase: str
    leaves: tuple[np.ndarray, ...]
    content: bytes


class LedgerWriter:
    """Appends rounds to a folder's ledger. A context manager.

    Args:
      folder: of the run.
      resume_after: rounds that are done; later entries of an earlier, killed process are dropped.

    What is damaged is dropped, and what follows it; whether that is so is asked before
    (``whole_until``).

    Raises:
      StorageError: it cannot be written.
    """

    def __init__(self, folder: Path, resume_after: int):
        self._path = folder / FILE_NAME
        entries, _ = _whole_entries(self._path)
        kept = [e for e in entries if e.round <= resume_after]
        self._last = kept[-1] if kept else None
        if self._path.exists():
            write_whole_bytes(self._path, b"".join(_framed(e.content) for e in kept))
        self._file = None

    def write(self, round_idx: int, phase: str, recorded: PyTree) -> None:
        """Writes a round; ``recorded`` is a tree of arrays, of the same structure in a phase."""
        leaves = tuple(np.asarray(leaf) for leaf in jax.tree.leaves(recorded))
        self._last = make_entry(round_idx, phase, leaves, self._last)
        with storing(self._path):
            if self._file is None:
                self._file = self._path.open("ab")
            self._file.write(_framed(self._last.content))
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            with suppress(OSError):  # it was said when it was written
                self._file.close()


def make_entry(
    round_idx: int, phase: str, leaves: Sequence[np.ndarray], before: Entry | None
) -> Entry:
    """Returns the entry that follows another one."""
    same_phase = before is not None and before.phase == phase
    arrays = {
        str(i): leaf
        for i, leaf in enumerate(leaves)
        if not (same_phase and before and _equal(leaf, before.leaves[i]))
    }
    previous = _NOTHING if before is None else hashlib.sha256(before.content).digest()
    content = serialization.msgpack_serialize(
        {"round": round_idx, "phase": phase, "arrays": arrays, "previous": previous}
    )
    return Entry(round_idx, phase, tuple(leaves), content)


def whole_until(folder: Path, rounds: Iterable[int]) -> tuple[int | None, str]:
    """Returns the last of some rounds up to which none is missing, and what is wrong after it.

    Args:
      folder: of the run.
      rounds: in order, those that should have an entry.

    Returns:
      ``(None, "")`` if all are there, or there is no ledger; ``(round, why)`` if the first that is
      missing is the one after that round.
    """
    path = folder / FILE_NAME
    if not path.exists():  # of an earlier version; a replay says so
        return None, ""
    entries, why = _whole_entries(path)
    found = {entry.round for entry in entries}
    first = next((one for one in rounds if one not in found), None)
    if first is None:
        return None, ""
    return first - 1, why or f"{path} has no round {first}"


def read(folder: Path) -> list[Entry]:
    """Returns all rounds of a folder's ledger, each checked against the one before it.

    Raises:
      ConfigError: there is none; or an entry is damaged, changed, missing or elsewhere: names it.
    """
    path = folder / FILE_NAME
    if not path.exists():
        raise ConfigError(f"{folder} has no {FILE_NAME}; only rounds of scalars leave one")
    return list(_entries(path, path.read_bytes()))


def _entries(path: Path, data: bytes) -> Iterator[Entry]:
    before: Entry | None = None
    place = 0
    while place < len(data):
        number = "the first entry" if before is None else f"the entry after round {before.round}"
        content, place = _next(data, place)
        found = None if content is None else _restored(content)
        if content is None or found is None:
            raise ConfigError(f"{path}: {number} is damaged; nothing after it can be rebuilt")
        round_idx, phase = found["round"], found["phase"]
        wanted = _NOTHING if before is None else hashlib.sha256(before.content).digest()
        if found["previous"] != wanted:
            what = (
                "it is not the first one"
                if before is None
                else f"round {before.round} was changed, or one between is missing or elsewhere"
            )
            raise ConfigError(
                f"{path}: the entry of round {round_idx} does not follow from what is before it: "
                f"{what}"
            )
        same_phase = before is not None and phase == before.phase
        arrays = {int(i): np.asarray(leaf) for i, leaf in found["arrays"].items()}
        known = dict(enumerate(before.leaves)) if same_phase and before else {}
        leaves = known | arrays
        yield (before := Entry(round_idx, phase, tuple(leaves[i] for i in sorted(leaves)), content))


def _whole_entries(path: Path) -> tuple[list[Entry], str]:
    """Returns all entries up to the first bad one, and what is wrong with that.

    A last one that was torn by a kill is not bad.
    """
    data = path.read_bytes() if path.exists() else b""
    place = end = 0
    while place < len(data):
        content, place = _next(data, place)
        if content is None:
            break
        end = place
    found = []
    try:
        for entry in _entries(path, data[:end]):
            found.append(entry)
    except ConfigError as error:
        return found, str(error)
    return found, ""


def _next(data: bytes, place: int) -> tuple[bytes | None, int]:
    """Returns the content of the entry at a place, None if it is torn, and the place after it."""
    start = place + _LENGTH.size
    if start > len(data):
        return None, len(data)
    end = start + _LENGTH.unpack_from(data, place)[0]
    return (None, len(data)) if end > len(data) else (data[start:end], end)


def _restored(content: bytes) -> dict[str, Any] | None:
    try:
        found: Any = serialization.msgpack_restore(content)
        return found if {"round", "phase", "arrays", "previous"} <= found.keys() else None
    except Exception:  # of bytes that may be anything
        return None


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return (
        one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    )


def _framed(content: bytes) -> bytes:
    return _LENGTH.pack(len(content)) + content
