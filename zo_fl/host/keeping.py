"""What is computed once and looked at instead of examples (``Phase.keeping``), and shared by runs.

Runs share through a folder: the first that needs an array computes it. A file is named after
everything that decides what is in it. Few are left, the latest: such arrays are large, and runs
that share are run one after the other.
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

from zo_fl.engine.phase import Keeping, Phase
from zo_fl.engine.types import Examples, FederatedData, PyTree, ServerState

_LEFT = 5  # files: of the clients, of their validation, of two evaluations; one to spare


class Keeper:
    """What the phases of a run look at instead of examples; of one ``Keeping`` at a time.

    Where runs share, what models are evaluated on is kept as well.

    Args:
      head: name of the last layer, on which nothing that is kept depends.
      folder: of what runs share, or None.
      sharding: where arrays go.
      compiler_options: of the engine.
    """

    def __init__(
        self,
        head: str,
        folder: Path | None,
        sharding: Sharding,
        compiler_options: Mapping[str, Any],
    ):
        self._head, self._folder, self._sharding = head, folder, sharding
        self._options = dict(compiler_options)
        self._kept: tuple[Keeping, Examples] | None = None
        self._evaluated: tuple[Keeping, dict[str, PyTree]] | None = None

    def data_of(self, phase: Phase, state: ServerState, data: FederatedData) -> FederatedData:
        """Returns what a phase looks at: the data, or what is kept of all examples in them.

        The phase before may have it, or, where runs share, another run.
        """
        keeping = phase.keeping
        if keeping is None or not (keeping.on_client or self._folder is not None):
            self._kept = None
            return data
        if self._kept is None or self._kept[0] is not keeping:
            self._kept = None  # before there are two
            self._kept = keeping, self._computed(keeping, state, data.examples)
        return data._replace(examples=self._kept[1])

    def evaluated(
        self, phase: Phase, name: str, see: Callable[..., PyTree], arguments: tuple, sharding
    ) -> PyTree | None:
        """Returns what a phase's models are evaluated on; None if that is not kept.

        Args:
          phase: which leaves all of its models but the last layer as it is.
          name: of the evaluation set.
          see: makes it of ``arguments``.
          arguments: parameters and others.
          sharding: how it lies.
        """
        keeping = phase.keeping
        if keeping is None or self._folder is None:
            self._evaluated = None
            return None
        if self._evaluated is None or self._evaluated[0] is not keeping:
            self._evaluated = keeping, {}
        found = self._evaluated[1]
        if name not in found:
            found[name] = self._made(see, arguments, sharding)
        return found[name]

    def _computed(self, keeping: Keeping, state: ServerState, examples: Examples) -> Examples:
        arguments = state.params, state.model_state, examples
        return self._made(keeping.compute, arguments, self._sharding)

    def _made(self, compute: Callable[..., PyTree], arguments: tuple, sharding) -> PyTree:
        """Returns ``compute(params, ...)``, where runs share from the first that needed it."""
        params, *others = arguments
        # Whatever the last layer is: runs that differ there share as well.
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
    """Returns a name for what a program makes of arrays.

    Args:
      text: the program.
      tree: the arrays.
    """
    found = hashlib.sha256(text.encode())
    for leaf in jax.tree.leaves(tree):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()[:24]


def load_or_make(folder: Path, name: str, like: PyTree, make: Callable[[], PyTree]) -> PyTree:
    """Returns what ``make`` returns, from the folder if it is there, and leaves it there.

    A file that is damaged is made anew (a zip archive has a checksum of each array). A folder that
    cannot be written to is no reason to fail.

    Args:
      folder: made if missing.
      name: of the file, without its ending.
      like: of its structure.
      make: returns arrays.
    """
    path = folder / f"{name}.npz"
    structure = jax.tree.structure(like)
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
