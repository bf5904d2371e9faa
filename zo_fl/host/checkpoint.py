"""Checkpoints of a run: the latest two, and some for ever. A thin layer over orbax.

    WORKDIR/checkpoints/rounds/ROUND    the latest two
    WORKDIR/checkpoints/pivot/ROUND     the end of the warm-up, to start other second phases from,
                                        and later states that a ledger begins with

Of several processes all take part in saving and restoring, on a file system that they share.

A checkpoint is a state (a tree of arrays) and a small JSON dict. It is written under a temporary
name and renamed when it is whole, so one that was killed on the way does not exist for any reader.
"""

import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import LatestN

from zo_fl.core.errors import ConfigError
from zo_fl.core.types import PyTree
from zo_fl.host import processes

KEPT = 2
_ALL = 10**6


class Checkpoints:
    """The checkpoints in a run's folder.

    Args:
      workdir: the run's folder. What a killed process left half-written there is removed.
    """

    def __init__(self, workdir: str | Path):
        root = Path(workdir).absolute() / "checkpoints"
        # A filter, because orbax logs from threads of its own too. Adding it again changes nothing.
        logging.getLogger("absl").addFilter(_not_from_orbax)
        self._rounds = _manager(root / "rounds", KEPT)
        self._pivot = _manager(root / "pivot", _ALL)

    def save(
        self, round_idx: int, state: PyTree, progress: dict[str, Any], *, keep: bool = False
    ) -> None:
        """Saves a state; returns when it is on disk. A round that is saved already is left alone.

        Blocking, because the caller donates ``state`` to its next chunk of rounds.

        Args:
          round_idx: rounds done; larger than in earlier calls.
          state: tree of arrays; may contain NamedTuples and empty dicts.
          progress: what else to remember, as JSON.
          keep: never to be deleted.
        """
        # The pivot first: if this is killed between the two, the round is run and saved again.
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress)
        )
        for manager in (self._pivot, self._rounds) if keep else (self._rounds,):
            if round_idx not in manager.all_steps():
                manager.save(round_idx, args=items, force=True)

    def latest_round(self) -> int | None:
        """Returns the rounds done at the latest checkpoint, or None if there is none."""
        return processes.of_first(self._rounds.latest_step())

    def pivot_round(self) -> int | None:
        """Returns the rounds done at the pivot, or None if it is not saved (yet)."""
        return processes.of_first(min(self._pivot.all_steps(), default=None))

    def restore(self, round_idx: int, abstract_state: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """Returns ``(state, progress)`` as saved after ``round_idx`` rounds.

        Args:
          round_idx: what ``latest_round`` or ``pivot_round`` returned.
          abstract_state: tree of ``jax.ShapeDtypeStruct``, or of arrays, with the structure,
            shapes, dtypes and shardings to restore to. No sharding means the default device.

        Raises:
          ConfigError: the checkpoint is of a state of another structure, shape or dtype.
        """
        manager = self._rounds if round_idx in self._rounds.all_steps() else self._pivot
        abstract = jax.tree.map(_abstract, abstract_state)
        # By hand, because orbax converts dtypes silently and reports the rest in many lines.
        _check(manager, round_idx, abstract)
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore()
        )
        restored = manager.restore(round_idx, args=items)
        return restored["state"], restored["progress"]

    def progress(self, round_idx: int) -> dict[str, Any]:
        """Returns what was saved beside the state after ``round_idx`` rounds."""
        manager = self._rounds if round_idx in self._rounds.all_steps() else self._pivot
        items = ocp.args.Composite(progress=ocp.args.JsonRestore())
        return manager.restore(round_idx, args=items)["progress"]

    def restore_latest(self, abstract_state: PyTree) -> tuple[int, PyTree, dict[str, Any]] | None:
        """Returns ``(round_idx, state, progress)`` of the latest checkpoint, or None.

        Args:
          abstract_state: as in ``restore``.

        Raises:
          ConfigError: as in ``restore``.
        """
        latest = self.latest_round()
        return None if latest is None else (latest, *self.restore(latest, abstract_state))

    def restore_pivot(self, abstract_state: PyTree) -> tuple[int, PyTree, dict[str, Any]] | None:
        """Returns ``(round_idx, state, progress)`` at the pivot, or None.

        Args:
          abstract_state: as in ``restore``.

        Raises:
          ConfigError: as in ``restore``.
        """
        pivot = self.pivot_round()
        return None if pivot is None else (pivot, *self.restore(pivot, abstract_state))


def _manager(path: Path, num_kept: int) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        preservation_policy=LatestN(num_kept),
        cleanup_tmp_directories=True,
        enable_async_checkpointing=False,
    )
    path.mkdir(parents=True, exist_ok=True)
    handlers = {"state": ocp.StandardCheckpointHandler(), "progress": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(path, options=options, item_handlers=handlers)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _check(manager: ocp.CheckpointManager, round_idx: int, abstract_state: PyTree) -> None:
    metadata = manager.item_metadata(round_idx)["state"]
    saved = _describe(getattr(metadata, "tree", metadata))
    given = _describe(abstract_state)
    differ = [name for name in saved.keys() | given.keys() if saved.get(name) != given.get(name)]
    if differ:
        # An array says more than the empty node that it fills.
        name = min(differ, key=lambda name: ("empty" in (saved.get(name), given.get(name)), name))
        raise ConfigError(
            f"checkpoint {manager.directory / str(round_idx)} has {name}: "
            f"{saved.get(name, 'absent')}, the config makes it {given.get(name, 'absent')}; "
            "go back to the config it was saved with, or choose another --workdir"
        )


def _describe(tree: PyTree) -> dict[str, str]:
    """Returns path -> ``f32[3,4]`` of every array, and ``empty`` of every node without any."""

    def is_leaf(node):
        return hasattr(node, "shape") or not jax.tree.leaves(node)

    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" if hasattr(leaf, "shape") else "empty"
        )
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]
    }


def _not_from_orbax(record: logging.LogRecord) -> bool:
    """Filters what orbax logs below an error: it is about clusters, and a page a save."""
    return record.levelno >= logging.ERROR or "orbax" not in Path(record.pathname).parts
