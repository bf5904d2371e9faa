"""Arrays that runs share through a folder: computed by the first that needs them.

A file is named after everything that decides what is in it. Few are left, the latest: such arrays
are large, and runs that share are run one after the other.
"""

import hashlib
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import jax
import numpy as np

from zo_fl.core.types import PyTree

_LEFT = 3  # files


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
    try:
        _write(path, jax.tree.leaves(made))
    except OSError:
        with suppress(OSError):
            path.with_suffix(".partial").unlink(missing_ok=True)
    return made


def _write(path: Path, leaves: list[np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **{str(i): leaf for i, leaf in enumerate(leaves)})
    partial.replace(path)
    newest = sorted(path.parent.glob("*.npz"), key=lambda one: one.stat().st_mtime, reverse=True)
    for old in newest[_LEFT:]:
        old.unlink(missing_ok=True)
