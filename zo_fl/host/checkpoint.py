"""Checkpoints of a run: the latest two, and some for ever. A thin layer over orbax.

    WORKDIR/checkpoints/rounds/ROUND    the latest two
    WORKDIR/checkpoints/pivot/ROUND     the end of the warm-up, to start other second phases from,
                                        and later states that a ledger begins with
    WORKDIR/checkpoints/damaged/        what could not be restored, set aside

Of several processes all take part in saving and restoring, on a file system that they share.

A checkpoint is a state (a tree of arrays) and a small JSON dict. It is written under a temporary
name and renamed when it is whole, so one that was killed on the way does not exist for any reader.
What happens to it later (a disk that lies, a copy that was cut short) is found by digests of its
arrays and of the dict, which are saved with it and compared when it is restored.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import LatestN

from zo_fl.engine import trees
from zo_fl.engine.errors import ConfigError
from zo_fl.engine.types import PyTree
from zo_fl.host import files, processes

KEPT = 2
_ALL = 10**6
_MOST_LISTED = 50  # rounds that processes tell each other
_ARRAYS, _DIGEST = "_arrays", "_digest"  # in the dict, beside what was given


class Damaged(ConfigError):
    """A checkpoint that cannot be read, or is not what was saved; says which and why."""


class Checkpoints:
    """The checkpoints in a run's folder.

    Args:
      workdir: the run's folder. What a killed process left half-written there is removed.
      read_only: nothing is: the folder may be another process's, which is saving.
    """

    def __init__(self, workdir: str | Path, read_only: bool = False):
        root = Path(workdir).absolute() / "checkpoints"
        # A filter, because orbax logs from threads of its own too. Adding it again changes nothing.
        logging.getLogger("absl").addFilter(_not_from_orbax)
        self._rounds = _manager(root / "rounds", KEPT, read_only)
        self._pivot = _manager(root / "pivot", _ALL, read_only)
        self._damaged = root / "damaged"

    def save(
        self, round_idx: int, state: PyTree, progress: dict[str, Any], *, keep: bool = False
    ) -> None:
        """Saves a state; returns when it is on disk. A round that is saved already is left alone.

        Blocking, because the caller donates ``state`` to its next chunk of rounds.

        Args:
          round_idx: rounds done; larger than in earlier calls.
          state: tree of arrays, whole on every process; may contain NamedTuples and empty dicts.
          progress: what else to remember, as JSON.
          keep: never to be deleted.

        Raises:
          StorageError: it cannot be written; earlier ones are as they were.
        """
        content = progress | {_ARRAYS: _digests(state)}
        content[_DIGEST] = _digest_of(content)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(content)
        )
        # The pivot first: if this is killed between the two, the round is run and saved again.
        for manager in (self._pivot, self._rounds) if keep else (self._rounds,):
            if round_idx not in manager.all_steps():
                path = Path(manager.directory) / str(round_idx)
                with files.storing(path, trees.num_bytes(state), any_error=True):
                    manager.save(round_idx, args=items, force=True)

    def rounds(self) -> list[int]:
        """Returns the rounds done at all checkpoints, in order."""
        return processes.of_first(
            sorted({*self._rounds.all_steps(), *self._pivot.all_steps()})[-_MOST_LISTED:]
        )

    def latest_round(self) -> int | None:
        """Returns the rounds done at the latest checkpoint, or None if there is none."""
        return max(self.rounds(), default=None)

    def pivot_round(self) -> int | None:
        """Returns the rounds done at the pivot, or None if it is not saved (yet)."""
        return processes.of_first(min(self._pivot.all_steps(), default=None))

    def restore(self, round_idx: int, abstract_state: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """Returns ``(state, progress)`` as saved after ``round_idx`` rounds.

        Args:
          round_idx: one of ``rounds()``.
          abstract_state: tree of ``jax.ShapeDtypeStruct``, or of arrays, with the structure,
            shapes, dtypes and shardings to restore to. No sharding means the default device.

        Raises:
          ConfigError: the checkpoint is of a state of another structure, shape or dtype.
          Damaged: it cannot be read, or differs from what was saved.
        """
        manager = self._holder(round_idx)
        content = self._content(round_idx)
        known, given = content.pop(_ARRAYS, None), _describe(abstract_state)
        if known is None:  # of an earlier version: no digests
            with self._reading(round_idx):
                metadata = manager.item_metadata(round_idx)["state"]
                saved = _describe(getattr(metadata, "tree", metadata))
        else:
            saved = {name: kind for name, (kind, _) in known.items()}
        # By hand, because orbax converts dtypes silently and reports the rest in many lines.
        _check(self._path(round_idx), saved, given)
        abstract = jax.tree.map(_abstract, abstract_state)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        with self._reading(round_idx):
            state = manager.restore(round_idx, args=items)["state"]
        if known is not None:
            found = _digests(state)
            bad = [name for name, value in known.items() if list(found[name]) != list(value)]
            if bad:
                raise Damaged(f"{self._path(round_idx)}: {bad[0]} is not what was saved")
        return state, content

    def progress(self, round_idx: int) -> dict[str, Any]:
        """Returns what was saved beside the state after ``round_idx`` rounds.

        Raises:
          Damaged: it cannot be read, or differs from what was saved.
        """
        content = self._content(round_idx)
        content.pop(_ARRAYS, None)
        return content

    def set_aside(self, round_idx: int) -> Path:
        """Moves a damaged checkpoint to where nothing looks for it; returns where to."""
        holder, path = self._holder(round_idx), self._path(round_idx)
        target = self._damaged / f"{path.parent.name}-{round_idx}-{time.time_ns()}"
        with processes.agreed():
            if processes.is_first():
                with files.storing(target):
                    self._damaged.mkdir(exist_ok=True)
                    path.rename(target)
        holder.reload()
        return target

    def has_set_aside(self) -> bool:
        """Returns whether some were damaged."""
        return self._damaged.exists()

    def _holder(self, round_idx: int) -> ocp.CheckpointManager:
        return self._rounds if round_idx in self._rounds.all_steps() else self._pivot

    def _path(self, round_idx: int) -> Path:
        return Path(self._holder(round_idx).directory) / str(round_idx)

    def _content(self, round_idx: int) -> dict[str, Any]:
        """Returns what is saved beside a state, digests of its arrays included."""
        with self._reading(round_idx):
            items = ocp.args.Composite(progress=ocp.args.JsonRestore())
            content = dict(self._holder(round_idx).restore(round_idx, args=items)["progress"])
        digest = content.pop(_DIGEST, None)
        if digest is not None and digest != _digest_of(content):
            raise Damaged(
                f"{self._path(round_idx)}: what is beside the arrays is not what was saved"
            )
        return content

    @contextmanager
    def _reading(self, round_idx: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of damaged files orbax, tensorstore and json raise anything
            why = " ".join(str(error).split()).split(" See full")[0][:200] or type(error).__name__
            raise Damaged(f"{self._path(round_idx)} cannot be read ({why})") from error


def _manager(path: Path, num_kept: int, read_only: bool) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        preservation_policy=LatestN(num_kept),
        cleanup_tmp_directories=not read_only,
        enable_async_checkpointing=False,
        read_only=read_only,
    )
    if not read_only:
        with files.storing(path):
            path.mkdir(parents=True, exist_ok=True)
    handlers = {"state": ocp.StandardCheckpointHandler(), "progress": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(path, options=options, item_handlers=handlers)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _check(path: Path, saved: dict[str, str], given: dict[str, str]) -> None:
    differ = [name for name in saved.keys() | given.keys() if saved.get(name) != given.get(name)]
    if differ:
        # An array says more than the empty node that it fills.
        name = min(differ, key=lambda name: ("empty" in (saved.get(name), given.get(name)), name))
        raise ConfigError(
            f"checkpoint {path} has {name}: "
            f"{saved.get(name, 'absent')}, the config makes it {given.get(name, 'absent')}; "
            "go back to the config it was saved with, or choose another --workdir"
        )


def _nodes(tree: PyTree) -> dict[str, Any]:
    """Returns path -> every array, and every node without any."""

    def is_leaf(node):
        return hasattr(node, "shape") or not jax.tree.leaves(node)

    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]
    }


def _describe(tree: PyTree) -> dict[str, str]:
    """Returns path -> ``f32[3,4]`` of every array, and ``empty`` of every node without any."""
    return {name: _kind(node) for name, node in _nodes(tree).items()}


def _kind(node: Any) -> str:
    if not hasattr(node, "shape"):
        return "empty"
    return f"{node.dtype}[{','.join(map(str, node.shape))}]"


def _digests(state: PyTree) -> dict[str, list[str]]:
    """Returns path -> kind and SHA-256 of every array, and of every node without any."""
    found = {}
    for name, node in _nodes(state).items():
        data = np.asarray(node if hasattr(node, "shape") else 0.0).reshape(-1).view(np.uint8)
        found[name] = [_kind(node), hashlib.sha256(data.data).hexdigest()]
    return found


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _not_from_orbax(record: logging.LogRecord) -> bool:
    """Filters what orbax logs below an error: it is about clusters, and a page a save."""
    return record.levelno >= logging.ERROR or "orbax" not in Path(record.pathname).parts
