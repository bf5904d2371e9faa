"""Checkpoints of a run, by orbax: the latest two, and some for ever.

    FOLDER/checkpoints/rounds/ROUND     the latest two
    FOLDER/checkpoints/pivot/ROUND      kept for ever: other runs or a replay may start from it
    FOLDER/checkpoints/damaged/         could not be restored

A checkpoint is a state (a tree of arrays) and a small JSON dict. It is written under a temporary
name and renamed when it is whole, so no reader finds a save that was killed. Later damage (a disk
that lies, a copy that was cut short) shows when it is restored: the SHA-256 of every array, and of
the dict, is saved with it and compared. Several processes save and restore together, on a file
system that they share.
"""

import hashlib
import json
import logging
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epy

from zo_fl.engine.fields import ConfigError
from zo_fl.engine.types import PyTree
from zo_fl.host import files, processes

with epy.lazy_imports():  # which take a third of a second that the first round need not wait for
    import orbax.checkpoint as ocp

_MOST_LISTED = 50  # rounds that processes tell each other
_ARRAYS, _DIGEST = "_arrays", "_digest"  # in the dict, beside what was given


class Damaged(ConfigError):
    """A checkpoint cannot be read, or is not what was saved; the message says which and why."""


class Checkpoints:
    """The checkpoints in a run's folder.

    Args:
      folder: of the run. Half-written checkpoints of a killed process are removed.
      read_only: removes nothing, as another process may be saving there.
    """

    def __init__(self, folder: str | Path, read_only: bool = False):
        root = Path(folder).absolute() / "checkpoints"
        # A filter, because orbax logs from threads of its own too. Adding it again changes nothing.
        logging.getLogger("absl").addFilter(_not_from_orbax)
        self._rounds = _manager(root / "rounds", 2, read_only)
        self._pivot = _manager(root / "pivot", None, read_only)
        self._damaged = root / "damaged"

    def save(
        self, round_idx: int, state: PyTree, progress: dict[str, Any], *, keep: bool = False
    ) -> None:
        """Saves a state, unless its round is saved already; returns when it is on disk.

        Blocking, because the caller donates ``state`` to its next chunk of rounds.

        Args:
          round_idx: rounds done; larger than in earlier calls.
          state: tree of arrays, whole on every process; may contain NamedTuples and empty dicts.
          progress: JSON, saved beside the state.
          keep: never to be deleted.

        Raises:
          StorageError: it cannot be written; earlier ones are as they were.
        """
        content = progress | {_ARRAYS: _digests(state)}
        content[_DIGEST] = _digest_of(content)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(content)
        )
        # The pivot first: if it is killed between the two, the round is run and saved again.
        for manager in (self._pivot, self._rounds) if keep else (self._rounds,):
            if round_idx not in manager.all_steps():
                with files.storing(Path(manager.directory) / str(round_idx), any_error=True):
                    manager.save(round_idx, args=items, force=True)

    def rounds(self) -> list[int]:
        """Returns the rounds done at all checkpoints, in order."""
        found = {*self._rounds.all_steps(), *self._pivot.all_steps()}
        return processes.of_first(sorted(found)[-_MOST_LISTED:])

    def latest_round(self) -> int | None:
        """Returns the rounds done at the latest checkpoint, or None if there is none."""
        return max(self.rounds(), default=None)

    def restore(self, round_idx: int, like: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """Returns ``(state, progress)`` as saved after ``round_idx`` rounds.

        Args:
          round_idx: one of ``rounds()``.
          like: tree of arrays, or of ``jax.ShapeDtypeStruct``, with the structure, shapes, dtypes
            and shardings to restore to. No sharding means the default device.

        Raises:
          ConfigError: the saved state has another structure, shape or dtype.
          Damaged: it cannot be read, or differs from what was saved.
        """
        path, (known, progress) = self._path(round_idx), self._beside(round_idx)
        # By hand: orbax converts dtypes silently, and reports the rest in many lines.
        _check(path, {name: kind for name, (kind, _) in known.items()}, like)
        abstract = ocp.args.StandardRestore(jax.tree.map(_abstract, like))
        state = self._read(round_idx, "state", abstract)
        found = _digests(state)
        bad = [name for name, value in known.items() if found[name] != value]
        if bad:
            raise Damaged(f"{path}: {bad[0]} is not what was saved")
        return state, progress

    def progress(self, round_idx: int) -> dict[str, Any]:
        """Returns the ``progress`` saved after ``round_idx`` rounds; may raise ``Damaged``."""
        return self._beside(round_idx)[1]

    def set_aside(self, round_idx: int) -> Path:
        """Moves a damaged checkpoint out of the way; returns its new path."""
        manager, path = self._manager_of(round_idx), self._path(round_idx)
        target = self._damaged / f"{path.parent.name}-{round_idx}-{time.time_ns()}"
        with processes.agreed():
            if processes.is_first():
                with files.storing(target):
                    self._damaged.mkdir(exist_ok=True)
                    path.rename(target)
        manager.reload()
        return target

    def has_set_aside(self) -> bool:
        """Returns whether some checkpoints were damaged."""
        return self._damaged.exists()

    def _manager_of(self, round_idx: int) -> "ocp.CheckpointManager":
        return self._rounds if round_idx in self._rounds.all_steps() else self._pivot

    def _path(self, round_idx: int) -> Path:
        return Path(self._manager_of(round_idx).directory) / str(round_idx)

    def _beside(self, round_idx: int) -> tuple[dict[str, list[str]], dict[str, Any]]:
        """Returns the digests of a round's arrays, and its ``progress``."""
        content = self._read(round_idx, "progress", ocp.args.JsonRestore())
        if not isinstance(content, dict) or content.pop(_DIGEST, None) != _digest_of(content):
            path = self._path(round_idx)
            raise Damaged(f"{path}: what is beside the arrays is not what was saved")
        return content.pop(_ARRAYS), content

    def _read(self, round_idx: int, item: str, how: "ocp.args.CheckpointArgs") -> Any:
        args = ocp.args.Composite(**{item: how})
        try:
            return self._manager_of(round_idx).restore(round_idx, args=args)[item]
        except Exception as error:  # of damaged files orbax, tensorstore and json raise anything
            why = " ".join(str(error).split()).split(" See full")[0][:200] or type(error).__name__
            raise Damaged(f"{self._path(round_idx)} cannot be read ({why})") from error


def _manager(path: Path, num_kept: int | None, read_only: bool) -> "ocp.CheckpointManager":
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(num_kept),
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


def _check(path: Path, saved: dict[str, str], like: PyTree) -> None:
    """Checks that a checkpoint's arrays are of the same kinds as those of a state."""
    given = {name: _kind(node) for name, node in _nodes(like).items()}
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


def _kind(node: Any) -> str:
    """Returns ``float32[3,4]`` for an array, ``empty`` for a node without any."""
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
    """Drops orbax's messages below an error: they are about clusters, and a page a save."""
    return record.levelno >= logging.ERROR or "orbax" not in Path(record.pathname).parts
