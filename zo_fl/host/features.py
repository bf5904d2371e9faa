"""Features that are computed once and used instead of examples (``Phase.keeping``).

Runs share them through a folder: the first run that needs an array computes it. The name of a file
is a hash of the program and of its arguments. Only the latest few files stay, because such arrays
are large and runs that share are run one after the other.
"""

import hashlib
import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from jax.sharding import Sharding

from zo_fl.engine.algorithm import Keeping, ServerState
from zo_fl.engine.layout import AXIS, Engine
from zo_fl.engine.types import FederatedData, PyTree, Task
from zo_fl.host import evaluate
from zo_fl.host.evaluate import EvaluationSet

_LEFT = 5  # files: clients, their validation, two evaluations; one to spare


class FeatureCache:
    """Features of one run, of one ``Keeping`` at a time; shared with other runs by a folder."""

    def __init__(self, task: Task, engine: Engine, folder: Path | None):
        self._head, self._engine, self._folder = task.head, engine, folder
        self._see = evaluate.make_seen(task)
        self._keeping: Keeping | None = None
        self._kept: dict[str, PyTree] = {}

    def data_of(
        self, keeping: Keeping | None, state: ServerState, data: FederatedData
    ) -> FederatedData:
        """Returns a phase's data, with features instead of examples where they are kept."""
        if keeping is None or not self._is_kept(keeping, asks=True):
            return data
        home, wide = self._engine.replicated, self._engine.wide
        arguments = (state.params, state.model_state, data.examples)
        arguments = jax.device_put(arguments, wide.replicated)
        made = home if wide is self._engine else wide.sharding(P(AXIS))
        compute = _divided(keeping.compute, wide)
        return data._replace(examples=self._get("clients", compute, arguments, home, made))

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
        home = self._engine.sharding(P(None, AXIS))
        return examples._replace(features=self._get(name, self._see, (*model, examples), home))

    def _is_kept(self, keeping: Keeping | None, asks: bool) -> bool:
        """Returns whether features are kept here; drops those of another ``Keeping``."""
        if keeping is not self._keeping:
            self._keeping, self._kept = keeping, {}
        if keeping is None:
            return False
        return self._folder is not None or (asks and keeping.on_client)

    def _get(
        self,
        name: str,
        compute: Callable[..., PyTree],
        arguments: tuple,
        home: Sharding,
        made: Sharding | None = None,
    ) -> PyTree:
        """Returns ``compute(*arguments)``, computed once; the folder may have it already.

        ``home`` is where it is kept, and ``made`` where it is made, if that is elsewhere.
        """
        if name not in self._kept:
            params, *others = arguments
            # The last layer is blanked, so that runs that differ in it share as well.
            blank = {self._head: optax.tree.zeros_like(params[self._head])}
            found = self._made(compute, (params | blank, *others), made or home)
            self._kept[name] = jax.device_put(found, home)
        return self._kept[name]

    def _made(self, compute: Callable[..., PyTree], arguments: tuple, where: Sharding) -> PyTree:
        options = self._engine.compiler_options
        program = jax.jit(compute, out_shardings=where, compiler_options=options)
        if self._folder is None:
            return program(*arguments)
        lowered = program.lower(*arguments)
        name = digest(lowered.as_text(), arguments)
        return load_or_make(
            self._folder, name, lowered.out_info, lambda: lowered.compile()(*arguments)
        )


def _divided(compute: Callable[..., PyTree], engine: Engine) -> Callable[..., PyTree]:
    """Returns ``(params, model_state, examples) -> features``, a part of them by each device.

    On all devices alike, each would compute all of them. Some rows more than examples may come out.
    """
    devices = engine.mesh.size
    if devices == 1:
        return compute

    def of_all(params, model_state, examples):
        count = jax.tree.leaves(examples)[0].shape[0]
        missing = (0, -count % devices)
        padded = jax.tree.map(
            lambda leaf: jnp.pad(leaf, [missing] + [(0, 0)] * (leaf.ndim - 1)), examples
        )
        specs = P(), P(), P(AXIS)
        of_part = jax.shard_map(
            compute, mesh=engine.mesh, in_specs=specs, out_specs=P(AXIS), check_vma=False
        )
        return of_part(params, model_state, padded)

    return of_all


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
