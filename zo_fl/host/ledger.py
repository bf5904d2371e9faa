"""The ledger of a run: the messages of each round, from which keys rebuild all of phase two.

``ledger.msgpack`` has an entry for every round of a phase that replays (``Phase.replays``):

    length u32, little-endian | msgpack {round, phase, arrays, previous}

``arrays`` are the leaves of the round's record (who took part, scalars, weights) and, where
statistics travel, of the new statistics, by their place; leaves equal to those of the entry before
are left out. ``previous`` is the SHA-256 of the whole entry before: a changed, missing or moved
entry shows in the next one. ``--verify`` checks the last one by its effect.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import serialization

from zo_fl.engine.fields import ConfigError
from zo_fl.engine.types import PyTree
from zo_fl.host.files import storing, write_whole

FILE_NAME = "ledger.msgpack"
_LENGTH_BYTES = 4


class Entry(NamedTuple):
    """One round.

    Attributes:
      round: of the run, from 1.
      phase: name.
      leaves: of the record, in the order of ``jax.tree.leaves``.
      content: the bytes in the file, without their length.
    """

    round: int
    phase: str
    leaves: tuple[np.ndarray, ...]
    content: bytes


class LedgerWriter:
    """Appends rounds to a folder's ledger.

    Args:
      folder: of the run.
      resume_after: rounds that are done; later entries of a killed process are dropped.

    Attributes:
      damage: the first damage in the file, in a line, "" if none; all from there on is dropped.

    Raises:
      StorageError: it cannot be written.
    """

    def __init__(self, folder: Path, resume_after: int):
        self._path = folder / FILE_NAME
        entries, problem, is_torn = _parsed(self._path)
        # A kill tears the entry of a round that is not done yet.
        is_late = not entries or entries[-1].round >= resume_after
        self.damage = "" if is_torn and is_late else problem
        kept = [e for e in entries if e.round <= resume_after]
        self._last = kept[-1] if kept else None
        if self._path.exists():
            write_whole(self._path, b"".join(_framed(e.content) for e in kept))

    def write(self, rounds: Iterable[int], phase: str, recorded: PyTree) -> None:
        """Writes rounds of a phase, in order.

        Args:
          rounds: of the run, from 1.
          phase: name.
          recorded: leaves ``[R, ...]``, at least as many as rounds; one structure in a phase.
        """
        with storing(self._path), self._path.open("ab") as file:
            for i, round_idx in enumerate(rounds):
                leaves = [np.asarray(leaf[i]) for leaf in jax.tree.leaves(recorded)]
                self._last = make_entry(round_idx, phase, leaves, self._last)
                file.write(_framed(self._last.content))


def make_entry(
    round_idx: int, phase: str, leaves: Sequence[np.ndarray], before: Entry | None
) -> Entry:
    """Returns the entry after another one; leaves of a phase keep their shapes and dtypes."""
    known = before.leaves if before is not None and before.phase == phase else ()
    arrays = {
        str(i): leaf
        for i, leaf in enumerate(leaves)
        if not known or leaf.tobytes() != known[i].tobytes()
    }
    content = serialization.msgpack_serialize(
        {"round": round_idx, "phase": phase, "arrays": arrays, "previous": _digest(before)}
    )
    return Entry(round_idx, phase, tuple(leaves), content)


def read(folder: Path) -> list[Entry]:
    """Returns all rounds of a folder's ledger, each checked against the one before it.

    Raises:
      ConfigError: there is no ledger; or an entry, named in the message, is damaged, changed,
        missing or moved.
    """
    path = folder / FILE_NAME
    if not path.exists():
        raise ConfigError(f"{folder} has no {FILE_NAME}; only rounds of scalars leave one")
    entries, problem, _ = _parsed(path)
    if problem:
        raise ConfigError(problem)
    return entries


def _parsed(path: Path) -> tuple[list[Entry], str, bool]:
    """Returns a ledger's entries up to the first bad one, and what is wrong with that, or "".

    The last value is True if the bad entry is only torn, as by a kill.
    """
    entries: list[Entry] = []
    for content in _contents(path.read_bytes() if path.exists() else b""):
        before = entries[-1] if entries else None
        found = None if content is None else _restored(content)
        if content is None or found is None:
            which = "the first entry" if before is None else f"the entry after round {before.round}"
            problem = f"{path}: {which} is damaged; nothing after it can be rebuilt"
            return entries, problem, content is None
        if found["previous"] != _digest(before):
            why = "it is not the first one"
            if before is not None:
                why = f"round {before.round} was changed, or one between is missing or elsewhere"
            problem = f"the entry of round {found['round']} does not follow from what is before it"
            return entries, f"{path}: {problem}: {why}", False
        known = before.leaves if before is not None and before.phase == found["phase"] else ()
        leaves = dict(enumerate(known))
        leaves |= {int(i): np.asarray(leaf) for i, leaf in found["arrays"].items()}
        in_order = tuple(leaves[i] for i in sorted(leaves))
        entries.append(Entry(found["round"], found["phase"], in_order, content))
    return entries, "", False


def _contents(data: bytes) -> Iterator[bytes | None]:
    """Yields the content of each entry of a file; None for a last one that is torn."""
    end = 0
    while end < len(data):
        start = end + _LENGTH_BYTES
        end = start + int.from_bytes(data[end:start], "little")
        yield data[start:end] if end <= len(data) else None


def _restored(content: bytes) -> dict[str, Any] | None:
    try:
        found: Any = serialization.msgpack_restore(content)
        return found if {"round", "phase", "arrays", "previous"} <= found.keys() else None
    except Exception:  # of bytes that may be anything
        return None


def _digest(before: Entry | None) -> bytes:
    return b"" if before is None else hashlib.sha256(before.content).digest()


def _framed(content: bytes) -> bytes:
    return len(content).to_bytes(_LENGTH_BYTES, "little") + content
