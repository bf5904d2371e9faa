"""Features that are computed once and looked at instead of examples (``Phase.keeping``).

Runs share them through a folder: the first that needs an array computes it. A file is named after
everything that decides what is in it. Only the latest few are left, because such arrays are large
and runs that share are run one after the other.
"""

import hashlib
import os
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Sharding

from zo_fl.engine.algorithm import Keeping, Phase, ServerState
from zo_fl.engine.task import Task
from zo_fl.engine.types import Examples, FederatedData, PyTree
from zo_fl.host import evaluate
from zo_fl.host.evaluate import EvaluationSet

_LEFT = 5  # files: of the clients, of their validation, of two evaluations; one to spare


class FeatureCache:
    """Features of one run, of one ``Keeping`` at a time.

    Args:
      task: whose last layer no feature depends on.
      folder: of what runs share, or None.
      sharding: where arrays go.
      compiler_options: of the engine.
    """

    def __init__(
        self,
        task: Task,
        folder: Path | None,
        sharding: Sharding,
        compiler_options: Mapping[str, Any],
    ):
        self._head, self._folder, self._sharding = task.head, folder, sharding
        self._see, self._options = evaluate.make_seen(task), dict(compiler_options)
        self._kept: tuple[Keeping, Examples] | None = None
        self._of_sets: tuple[Keeping, dict[str, PyTree]] | None = None

    def data_of(self, phase: Phase, state: ServerState, data: FederatedData) -> FederatedData:
        """Returns a phase's data, with features instead of examples where they are kept."""
        keeping = phase.keeping
        if keeping is None or not (keeping.on_client or self._folder is not None):
            self._kept = None
            return data
        if self._kept is None or self._kept[0] is not keeping:
            self._kept = None  # before there are two
            arguments = state.params, state.model_state, data.examples
            self._kept = keeping, self._made(keeping.compute, arguments, self._sharding)
        return data._replace(examples=self._kept[1])

    def of_set(
        self,
        keeping: Keeping | None,
        name: str,
        model: tuple[PyTree, PyTree],
        examples: EvaluationSet,
        sharding: Sharding,
        asks: bool,
    ) -> PyTree | None:
        """Returns the features of an evaluation set; None if they are not kept.

        Args:
          keeping: of the phase, which changes nothing of the model but its last layer.
          name: of the set.
          model: parameters and statistics.
          examples: the set.
          sharding: where the features go.
          asks: whether clients look at it, to answer a question: then they may keep features too.
        """
        if keeping is None or not (self._folder is not None or (asks and keeping.on_client)):
            return None
        if self._of_sets is None or self._of_sets[0] is not keeping:
            self._of_sets = keeping, {}
        found = self._of_sets[1]
        if name not in found:
            found[name] = self._made(self._see, (*model, examples), sharding)
        return found[name]

    def _made(self, compute: Callable[..., PyTree], arguments: tuple, sharding) -> PyTree:
        """Returns ``compute(params, ...)``, from the folder if another run has left it there."""
        params, *others = arguments
        # The last layer is blanked, so that runs that differ in it share as well.
        blank = {self._head: optax.tree.zeros_like(params[self._head])}
        arguments = params | blank, *others
        program = jax.jit(compute, out_shardings=sharding, compiler_options=self._options).lower(
            *arguments
        )

        def make():
            return program.compile()(*arguments)

        if self._folder is None:
            return make()
        name = digest(program.as_text(), arguments)
        found = load_or_make(self._folder, name, program.out_info, make)
        return jax.device_put(found, sharding)


def digest(text: str, tree: PyTree) -> str:
    """Returns a name for the result of a program on some arrays.

    Args:
      text: the program.
      tree: the arrays.
    """
    found = hashlib.sha256(text.encode())
    for leaf in jax.tree.leaves(tree):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()[:24]


def load_or_make(folder: Path, name: str, like: PyTree, make: Callable[[], PyTree]) -> PyTree:
    """Returns the arrays of a file in the folder, or else makes them and leaves them there.

    A damaged file is made anew (a zip archive has a checksum of each array). A folder that cannot
    be written to is no reason to fail.

    Args:
      folder: made if missing.
      name: of the file, without its ending.
      like: of their structure.
      make: returns them.
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
