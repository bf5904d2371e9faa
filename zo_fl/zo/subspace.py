"""Directions of fewer coordinates: some of the parameters, and there some of the coordinates.

    params = "head/*"               the last layer
    params = "*norm*"               scales and biases of the norms
    params = "!head/*"              all but the last layer
    density = 0.001                 a thousandth of each of the arrays

All others get no direction and cost nothing. The cosine between an estimate from M scalars and the
gradient is about sqrt(M / d): fewer coordinates, of which as many scalars say more. Those of a
density are one of every 1 / density neighbours, at places that a fixed key decides, so that nobody
has to be told.

Source: MEERKAT (arXiv 2506.03337) for a sparse mask that is sent once; its coordinates are those of
largest gradient on other data, these are random.
"""

import fnmatch

import jax
import jax.numpy as jnp
import numpy as np

from zo_fl.engine import keys
from zo_fl.engine.fields import Block, Field, FieldError, Rule
from zo_fl.engine.types import Array, Params
from zo_fl.zo.directions import AddDirection

_PLACES = 0  # seed of the places of coordinates: the same in all runs

FIELDS: Block = {
    "params": Field(
        "*",
        "paths of what moves, as `*norm*,head/*`; `!` before what stays",
        rule=Rule(lambda: "patterns joined by commas, * for all", lambda text: text.strip(", ")),
    ),
    "density": Field(1.0, "share of the coordinates of each array that move", above=0, at_most=1),
}


def restrict(add: AddDirection, params: str, density: float, like: Params) -> AddDirection:
    """Returns ``add_direction`` for directions that are zero outside some coordinates.

    Args:
      add: from ``directions.create``.
      params: patterns of paths, see above.
      density: share of the coordinates of each array.
      like: the model's parameters, or their shapes.

    Raises:
      FieldError: no parameter is left.
    """
    paths = [_name(path) for path, _ in jax.tree.flatten_with_path(like)[0]]
    moved = chosen(params, paths)
    if not moved:
        shown = ", ".join(paths[:6]) + (", ..." if len(paths) > 6 else "")
        raise FieldError("params", f"={params!r} leaves nothing to move; there are: {shown}")
    if density < 1.0:
        add = _thinned(add, density)
    elif len(moved) == len(paths):
        return add

    def add_direction(tree: Params, key: Array, scale: Array | float) -> Params:
        leaves, treedef = jax.tree.flatten_with_path(tree)
        whole = {_name(path): leaf for path, leaf in leaves}
        parts = add({name: whole[name] for name in moved}, key, scale)
        return jax.tree.unflatten(treedef, [parts.get(name, leaf) for name, leaf in whole.items()])

    return add_direction


def _thinned(add: AddDirection, density: float) -> AddDirection:
    """Returns ``add_direction`` for a share of the coordinates of each of ``path -> array``."""

    def add_direction(tree: Params, key: Array, scale: Array | float) -> Params:
        places = {name: _places(name, leaf.size, density) for name, leaf in tree.items()}
        few = {name: leaf.reshape(-1)[places[name]] for name, leaf in tree.items()}
        moved = add(few, key, scale)
        return {
            name: leaf.reshape(-1).at[places[name]].set(moved[name]).reshape(leaf.shape)
            for name, leaf in tree.items()
        }

    return add_direction


def chosen(params: str, paths: list[str]) -> list[str]:
    """Returns the paths that patterns, joined by commas, choose; the others of ``!`` alone."""
    patterns = [pattern.strip() for pattern in params.split(",") if pattern.strip()]
    kept = [pattern for pattern in patterns if not pattern.startswith("!")] or ["*"]
    left_out = [pattern[1:] for pattern in patterns if pattern.startswith("!")]

    def fits(path: str, patterns: list[str]) -> bool:
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)

    return [path for path in paths if fits(path, kept) and not fits(path, left_out)]


def dimension(params: str, density: float, like: Params) -> int:
    """Returns the number of coordinates that move; the arguments are those of ``restrict``."""
    leaves = {_name(path): leaf.size for path, leaf in jax.tree.flatten_with_path(like)[0]}
    return sum(_count(leaves[name], density) for name in chosen(params, list(leaves)))


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _count(size: int, density: float) -> int:
    return max(1, round(size * density))


def _places(name: str, size: int, density: float) -> Array:
    """Returns ``i32[k]``, increasing: one coordinate of each of k stretches of all coordinates."""
    count = _count(size, density)
    ends = np.arange(count + 1) * size // count  # lengths differ by one at most
    key = keys.stream(keys.run_key(_PLACES), name)
    return jnp.asarray(ends[:-1]) + jax.random.randint(key, (count,), 0, np.diff(ends))
