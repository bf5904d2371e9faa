"""Features that are computed once and used instead of examples (``Phase.keeping``).

Runs share them through a folder: the first run that needs an array computes it. The name of a file
is a hash of the program and of its arguments. Only the latest few files stay, because such arrays
are large and runs that share are run one after the other.
"""

import functools
import hashlib
import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from jax.sharding import Sharding

from zo_fl.engine import trees
from zo_fl.engine.algorithm import Keeping, ServerState
from zo_fl.engine.layout import AXIS, Engine
from zo_fl.engine.types import Array, Examples, FederatedData, PyTree, Task
from zo_fl.host import evaluate
from zo_fl.host.evaluate import EvaluationSet

_LEFT = 5  # files: clients, their validation, two evaluations; one to spare
_ROWS = 1024  # examples in a piece: their features are held twice for a while
_FEW = 4  # examples of an evaluation set whose activations a core holds at once


class Cut(NamedTuple):
    """How arrays are cut, and lie: pieces are computed one after another, each by all devices.

    Attributes:
      rows: of the leading axis, in a piece. The last piece begins earlier if they do not come out
        even.
      pieces: their number; rows after them stay 0.
      parted: the partition of a piece among the devices that compute it.
      home: the partition of the result.
    """

    rows: int
    pieces: int
    parted: P
    home: P


class FeatureCache:
    """Features of one run, of one ``Keeping`` at a time; shared with other runs by a folder."""

    def __init__(self, task: Task, engine: Engine, folder: Path | None):
        self._head, self._engine, self._folder = task.head, engine, folder
        # Cores that compute a part each do best with few examples: their activations stay in cache.
        self._see = evaluate.make_seen(task, _FEW if engine.wide is not engine else 0)
        self._keeping: Keeping | None = None
        self._kept: dict[str, PyTree] = {}

    def data_of(
        self, keeping: Keeping | None, state: ServerState, data: FederatedData
    ) -> FederatedData:
        """Returns a phase's data, with features instead of examples where they are kept.

        Some rows more than examples may come out.
        """
        if keeping is None or not self._is_kept(keeping, asks=True):
            return data
        count, devices = jax.tree.leaves(data.examples)[0].shape[0], self._engine.wide.mesh.size
        rows = -(-count // (-(-count // _ROWS) * devices)) * devices
        arguments = state.params, state.model_state, _padded(data.examples, -count % rows)
        cut = Cut(rows, -(-count // rows), P(AXIS), P())
        return data._replace(examples=self._get("clients", keeping.compute, arguments, cut))

    def of_set(
        self,
        keeping: Keeping | None,
        name: str,
        model: tuple[PyTree, PyTree],
        examples: EvaluationSet,
        asks: bool,
    ) -> EvaluationSet:
        """Returns an evaluation set, with its features where they are kept.

        Args:
          keeping: of the phase, which changes only the model's last layer.
          name: of the set.
          model: parameters and statistics.
          examples: the set.
          asks: whether clients answer a question with it: then they may keep features too.
        """
        if not self._is_kept(keeping, asks):
            return examples
        whole = examples.examples, examples.mask
        batches, size = examples.mask.shape
        rows = min(-(-_ROWS // size), batches)
        cut = Cut(rows, -(-int(examples.num_batches) // rows), P(None, AXIS), P(None, AXIS))
        return examples._replace(features=self._get(name, self._see, (*model, whole), cut))

    def _is_kept(self, keeping: Keeping | None, asks: bool) -> bool:
        """Returns whether features are kept here; drops those of another ``Keeping``."""
        if keeping is not self._keeping:
            self._keeping, self._kept = keeping, {}
        if keeping is None:
            return False
        return self._folder is not None or (asks and keeping.on_client)

    def _get(self, name: str, compute: Callable[..., PyTree], arguments: tuple, cut: Cut) -> PyTree:
        """Returns ``compute(*arguments)``, computed once; the folder may have it already."""
        if name not in self._kept:
            params, *others = arguments
            # The last layer is blanked, so that runs that differ in it share as well.
            blank = {self._head: optax.tree.zeros_like(params[self._head])}
            found = self._made(compute, (params | blank, *others), cut)
            self._kept[name] = jax.device_put(found, self._engine.sharding(cut.home))
        return self._kept[name]

    def _made(self, compute: Callable[..., PyTree], arguments: tuple, cut: Cut) -> PyTree:
        engine, wide = self._engine, self._engine.wide
        if wide is not engine:
            arguments = jax.device_put(arguments, wide.replicated)
        program = jax.jit(
            _divided(compute, wide, cut),
            out_shardings=wide.sharding(cut.parted if wide is not engine else cut.home),
            compiler_options=engine.compiler_options,
        )
        lowered = program.lower(*arguments, np.int32(0))
        length = jax.tree.leaves(arguments[2])[0].shape[0]
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((length, *leaf.shape[1:]), leaf.dtype),
            lowered.out_info,
        )

        def make() -> PyTree:
            of_piece = functools.partial(lowered.compile(), *arguments)
            return _join(of_piece, like, cut, engine.sharding(cut.home))

        if self._folder is None:
            return make()
        name = digest(lowered.as_text(), arguments)
        return load_or_make(self._folder, name, like, make)


def _padded(examples: Examples, missing: int) -> Examples:
    """Returns leaves ``[n + missing, ...]``, zeros at the end."""
    if not missing:
        return examples
    return jax.tree.map(
        lambda leaf: jnp.pad(leaf, [(0, missing)] + [(0, 0)] * (leaf.ndim - 1)), examples
    )


def _divided(compute: Callable[..., PyTree], engine: Engine, cut: Cut) -> Callable:
    """Returns ``(params, model_state, examples, begin i32[]) -> features`` of the piece there.

    Each device computes a part: on all devices alike, each would compute all of it.
    """
    of_part = compute
    if engine.mesh.size > 1:
        specs = P(), P(), cut.parted
        of_part = jax.shard_map(
            compute, mesh=engine.mesh, in_specs=specs, out_specs=cut.parted, check_vma=False
        )

    def of_piece(params, model_state, examples, begin):
        piece = functools.partial(
            jax.lax.dynamic_slice_in_dim, start_index=begin, slice_size=cut.rows
        )
        return of_part(params, model_state, jax.tree.map(piece, examples))

    return of_piece


def _join(of_piece: Callable[[np.int32], PyTree], like: PyTree, cut: Cut, home: Sharding) -> PyTree:
    """Returns all pieces as one, ``like``; memory holds one piece beside it."""

    def put(whole: PyTree, piece: PyTree, begin: Array) -> PyTree:
        place = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=begin, axis=0)
        return jax.tree.map(place, whole, piece)

    put = jax.jit(put, donate_argnums=0, out_shardings=home)
    whole = jax.jit(functools.partial(trees.zeros, like), out_shardings=home)()
    for begin in range(0, cut.pieces * cut.rows, cut.rows):
        piece = jax.device_put(of_piece(np.int32(begin)), home)
        whole = jax.block_until_ready(put(whole, piece, np.int32(begin)))
    return whole


def digest(text: str, tree: PyTree) -> str:
    """Returns a name for the result of a program, given as text, on a tree of arrays."""
    found = hashlib.sha256(text.encode())
    for leaf in jax.tree.leaves(tree):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()[:24]


def load_or_make(folder: Path, name: str, like: PyTree, make: Callable[[], PyTree]) -> PyTree:
    """Returns the arrays of a file in the folder, or else makes them and leaves them there.

    A damaged file is made anew (a zip archive has a checksum of each array). A folder that is
    missing is made; one that cannot be written to is no reason to fail. The result has the
    structure of ``like``.
    """
    path, structure = folder / f"{name}.npz", jax.tree.structure(like)
    try:
        with path.open("rb") as file, np.load(file) as stored:
            leaves = [stored[str(i)] for i in range(structure.num_leaves)]
        path.touch()
        return jax.tree.unflatten(structure, leaves)
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        made = jax.device_get(make())
    with suppress(OSError):
        _write(path, jax.tree.leaves(made))
    return made


def _write(path: Path, leaves: list[np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")  # two runs may need it at a time
    try:
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **{str(i): leaf for i, leaf in enumerate(leaves)})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    newest = sorted(path.parent.glob("*.npz"), key=lambda one: one.stat().st_mtime, reverse=True)
    for old in newest[_LEFT:]:
        old.unlink(missing_ok=True)
