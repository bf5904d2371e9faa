"""Which parameters directions move: fewer dimensions, in which as many scalars say more.

The cosine between an estimate from M scalars and the gradient is about sqrt(M / d). Directions can
be kept to some of the parameters, by their paths, and there to some of the coordinates: one of
every 1 / density neighbours, at places that a fixed key decides, so that nobody has to be told. All
other coordinates get no direction, and cost nothing.

    params = "head/*"               the last layer
    params = "*norm*"               scales and biases of the norms
    params = "!head/*"              all but the last layer
    density = 0.001                 a thousandth of each of the arrays
    by_layer = True                 one layer a direction, which the key draws: over many directions
                                    all layers take their turns

Source: MEERKAT (arXiv 2506.03337) for a sparse mask that is sent once; its coordinates are those
of largest gradient on other data, these are random.
"""

import fnmatch
import math

import jax
import jax.numpy as jnp

from zo_fl.engine import keys
from zo_fl.engine.errors import FieldError
from zo_fl.engine.fields import Block, Field
from zo_fl.engine.types import Array, Params
from zo_fl.zo.directions import AddDirection

_PLACES = 0  # seed of the places of coordinates: the same in all runs

FIELDS: Block = {
    "params": Field(
        "*", "paths of those that move, as `*norm*,head/*`; `!` before what stays as it is"
    ),
    "density": Field(1.0, "share of the coordinates of each array that move", above=0, at_most=1),
    "by_layer": Field(False, "a direction moves one layer, drawn by its key, not all"),
}


def restrict(
    add: AddDirection, params: str, density: float, by_layer: bool, like: Params
) -> AddDirection:
    """Returns ``add_direction`` for directions that are zero outside some coordinates.

    Args:
      add: from ``directions.create``.
      params: patterns of paths, see above.
      density: share of the coordinates of each array.
      by_layer: whether a direction moves one of the L layers only: longer by sqrt(L), so that
        directions still have E[z z^T] = tau^2 I.
      like: the model's parameters, arrays or shapes.

    Raises:
      FieldError: no parameter is left.
    """
    paths = [_name(path) for path, _ in jax.tree.flatten_with_path(like)[0]]
    moved = chosen(params, paths)
    if not moved:
        shown = ", ".join(paths[:6]) + (", ..." if len(paths) > 6 else "")
        raise FieldError("params", f"={params!r} leaves nothing to move; there are: {shown}")
    add = _one_layer(add, moved) if by_layer else add
    if len(moved) == len(paths) and density == 1.0 and not by_layer:
        return add

    def add_direction(tree: Params, key: Array, scale: Array | float) -> Params:
        leaves, treedef = jax.tree.flatten_with_path(tree)
        whole = {_name(path): leaf for path, leaf in leaves}
        parts = {name: whole[name] for name in moved}
        if density < 1.0:
            places = {name: _places(name, leaf.size, density) for name, leaf in parts.items()}
            parts = {name: leaf.reshape(-1)[places[name]] for name, leaf in parts.items()}
        parts = add(parts, key, scale)
        if density < 1.0:
            parts = {
                name: whole[name].reshape(-1).at[places[name]].set(part).reshape(whole[name].shape)
                for name, part in parts.items()
            }
        return jax.tree.unflatten(treedef, [parts.get(name, leaf) for name, leaf in whole.items()])

    return add_direction


def _one_layer(add: AddDirection, paths: list[str]) -> AddDirection:
    """Returns ``add_direction`` of trees ``path -> leaf`` for directions of one layer each."""
    layers = sorted({_layer(path) for path in paths})

    def add_direction(tree: Params, key: Array, scale: Array | float) -> Params:
        turn = jax.random.randint(keys.stream(key, "layer"), (), 0, len(layers))
        moved = add(tree, key, scale * math.sqrt(len(layers)))
        return {
            path: jnp.where(turn == layers.index(_layer(path)), moved[path], leaf)
            for path, leaf in tree.items()
        }

    return add_direction


def _layer(path: str) -> str:
    """Returns a parameter's layer: its path without its own name."""
    return path.rpartition("/")[0]


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
    sizes = [leaves[name] for name in chosen(params, list(leaves))]
    return sum(size if density == 1.0 else _count(size, density) for size in sizes)


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _count(size: int, density: float) -> int:
    return max(1, round(size * density))


def _places(name: str, size: int, density: float) -> Array:
    """Returns ``i32[k]``, increasing: one coordinate of each of k stretches of equal length."""
    count = _count(size, density)
    key = keys.stream(keys.run_key(_PLACES), name)
    width = size // count
    return jnp.arange(count) * width + jax.random.randint(key, (count,), 0, width)
