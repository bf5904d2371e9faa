"""Random directions z(key), regenerated wherever they are needed and never stored.

A direction is used in one way only, ``add_direction(tree, key, scale) = tree + scale * z(key)``: to
perturb the weights (scale = +-eps), to undo it, and to rebuild an update (scale = a coefficient).
All distributions have E[z z^T] = tau^2 I, so they are exchangeable at equal step size:

    rademacher   tau * {-1, +1}^d              ZOWarmUp's choice, one random bit a coordinate
    gaussian     tau * N(0, I)                 MeZO, FedKSeed, DeComFL
    sphere       tau * sqrt(d) * U(S^{d-1})    FedZO, which sets eps by its radius
    low_rank     tau * {-1, +1}^m x {-1, +1}^n an outer product for an array of m x n (all axes but
                                               the last, the last): m + n random bits

tau lives in this file alone. It appears in the perturbation and again in the rebuilt update, hence
the identity (eps, tau, lr) == (tau * eps, 1, tau^2 * lr) for plain SGD.

``restrict`` keeps directions to some of the parameters, by their paths, and there to some of the
coordinates: one of every 1 / density neighbours, at places that a fixed key decides, so that nobody
has to be told. All others get no direction and cost nothing. The cosine between an estimate from M
scalars and the gradient is about sqrt(M / d): fewer coordinates, of which as many scalars say more.

    params = "head/*"               the last layer
    params = "*norm*"               scales and biases of the norms
    params = "!head/*"              all but the last layer
    density = 0.001                 a thousandth of each of the arrays

Sources: ZOWarmUp, Algorithm 1 line 23 and section 3.2; Fang et al. 2022 for the sphere; LOZO (arXiv
2410.07698) and EGGROLL (2511.16652) for low ranks, with Gaussian factors: of signs, all coordinates
have the same size, as Rademacher's. MEERKAT (2506.03337) for a sparse mask that is sent once; its
coordinates are those of largest gradient on other data, these are random.
"""

import fnmatch
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry2x32_p

from zo_fl.engine import keys
from zo_fl.engine.fields import Block, Field, FieldError
from zo_fl.engine.types import Array, Params

AddDirection = Callable[[Params, Array, Array | float], Params]

_PLACES = 0  # seed of the places of coordinates: the same in all runs

FIELDS: Block = {
    "params": Field("*", "paths of what moves, as `*norm*,head/*`; `!` before what stays"),
    "density": Field(1.0, "share of the coordinates of each array that move", above=0, at_most=1),
}


def create(distribution: str, tau: float) -> AddDirection:
    """Returns ``add_direction(tree, key, scale) -> tree + scale * z(key)``.

    Args:
      distribution: a name in ``DISTRIBUTIONS``.
      tau: standard deviation of a coordinate of z, > 0.

    Returns:
      A pure function of a tree of ``f32`` leaves, a key ``key[]`` and a scale ``f32[]``. Each
      leaf's numbers depend on the key, the leaf's path and its shape, not on the other leaves
      (but for ``"sphere"``, which divides by the norm of all of them).
    """
    add = DISTRIBUTIONS[distribution]

    def add_direction(tree: Params, key: Array, scale: Array | float) -> Params:
        return add(tree, keys.leaf_keys(key, tree), jnp.float32(scale) * jnp.float32(tau))

    return add_direction


def _add_rademacher(tree: Params, leaf_keys: Array, scale: Array) -> Params:
    """Adds +-scale to every coordinate, by one random bit each.

    ``jax.random.rademacher`` draws 32 random bits a coordinate; here each word of the generator
    gives the signs of 32 coordinates. The sign bit is set in place: no multiplication, no rounding.
    """
    leaves, treedef = jax.tree.flatten(tree)
    words = _words(leaf_keys, [-(-leaf.size // 32) for leaf in leaves])
    return treedef.unflatten(
        [leaf + _signed(word, scale, leaf.shape) for leaf, word in zip(leaves, words, strict=True)]
    )


def _words(leaf_keys: Array, counts: list[int]) -> list[Array]:
    """Returns ``u32[counts[i]]`` random words for each leaf i, a function of its own key alone.

    One call of the generator for the whole model, with a key a counter: called leaf by leaf it is
    compiled as often as there are leaves (ResNet18 on a CPU: 12 s against 2 s). The words of all
    leaves together take 1/32 of the model's memory.
    """
    pairs = [-(-count // 2) for count in counts]  # a call of threefry gives two words
    data = jax.random.key_data(leaf_keys)
    key_of = jnp.concatenate([jnp.broadcast_to(data[i], (n, 2)) for i, n in enumerate(pairs)])
    counter = jnp.concatenate([jnp.arange(n, dtype=jnp.uint32) for n in pairs])
    first, second = threefry2x32_p.bind(
        key_of[:, 0], key_of[:, 1], counter, jnp.zeros_like(counter)
    )
    ends = list(itertools.accumulate(pairs, initial=0))
    return [
        jnp.concatenate([first[a:b], second[a:b]])[:count]
        for a, b, count in zip(ends, ends[1:], counts, strict=False)
    ]


def _signed(words: Array, magnitude: Array, shape: tuple[int, ...]) -> Array:
    """Returns ``f32[shape]`` of +-magnitude, a sign for each bit of ``words``."""
    # Row j holds bit 31 - j of every word: one shift a row, contiguous stores. With the bits of one
    # word side by side instead, the same draw took three times as long on a CPU (26 against 8 ms
    # for 8.8 M coordinates; adding one to as many takes 4 ms).
    signs = (words[None, :] << jnp.arange(32, dtype=jnp.uint32)[:, None]) & jnp.uint32(1 << 31)
    signs = signs.reshape(-1)[: math.prod(shape)].reshape(shape)
    bits = jax.lax.bitcast_convert_type(magnitude, jnp.uint32)
    return jax.lax.bitcast_convert_type(signs ^ bits, jnp.float32)


def _normals(tree: Params, leaf_keys: Array) -> tuple[list[Array], Any]:
    """Returns standard normal draws shaped like the leaves, and the tree's definition."""
    leaves, treedef = jax.tree.flatten(tree)
    words = _words(leaf_keys, [leaf.size for leaf in leaves])
    draws = [_normal(word).reshape(leaf.shape) for word, leaf in zip(words, leaves, strict=True)]
    return draws, treedef


def _normal(words: Array) -> Array:
    """Returns ``f32[n]`` standard normal numbers of ``words: u32[n]``, by the inverse error
    function."""
    # 23 random bits as the mantissa of a number in [1, 2), moved to [-1, 1); -1 itself would give
    # minus infinity.
    mantissa = (words >> 9) | jnp.uint32(0x3F800000)
    uniform = 2 * jax.lax.bitcast_convert_type(mantissa, jnp.float32) - 3
    uniform = jnp.maximum(uniform, np.nextafter(np.float32(-1), np.float32(0)))
    return np.float32(math.sqrt(2)) * jax.lax.erf_inv(uniform)


def _add_gaussian(tree: Params, leaf_keys: Array, scale: Array) -> Params:
    draws, treedef = _normals(tree, leaf_keys)
    return jax.tree.map(lambda leaf, draw: leaf + scale * draw, tree, treedef.unflatten(draws))


def _add_sphere(tree: Params, leaf_keys: Array, scale: Array) -> Params:
    draws, treedef = _normals(tree, leaf_keys)
    squares = sum(jnp.sum(jnp.square(draw)) for draw in draws)
    factor = scale * jnp.sqrt(sum(draw.size for draw in draws) / squares)
    return jax.tree.map(lambda leaf, draw: leaf + factor * draw, tree, treedef.unflatten(draws))


def _add_low_rank(tree: Params, leaf_keys: Array, scale: Array) -> Params:
    leaves, treedef = jax.tree.flatten(tree)
    sides = [(leaf.size // leaf.shape[-1], leaf.shape[-1]) for leaf in map(jnp.atleast_1d, leaves)]
    words = _words(leaf_keys, [-(-m // 32) + -(-n // 32) for m, n in sides])

    def moved(leaf: Array, word: Array, m: int, n: int) -> Array:
        left, right = jnp.split(word, [-(-m // 32)])
        rows = _signed(left, scale, (m, 1))
        return leaf + (rows * _signed(right, jnp.float32(1), (n,))[None]).reshape(leaf.shape)

    parts = zip(leaves, words, sides, strict=True)
    return treedef.unflatten([moved(leaf, word, *side) for leaf, word, side in parts])


DISTRIBUTIONS = {
    "rademacher": _add_rademacher,
    "gaussian": _add_gaussian,
    "sphere": _add_sphere,
    "low_rank": _add_low_rank,
}


def restrict(add: AddDirection, params: str, density: float, like: Params) -> AddDirection:
    """Returns ``add_direction`` for directions that are zero outside some coordinates.

    Args:
      add: from ``create``.
      params: patterns of paths, see above.
      density: share of the coordinates of each array.
      like: the model's parameters, arrays or shapes.

    Raises:
      FieldError: no parameter is left.
    """
    paths = [_name(path) for path, _ in jax.tree.flatten_with_path(like)[0]]
    moved = chosen(params, paths)
    if not moved:
        shown = ", ".join(paths[:6]) + (", ..." if len(paths) > 6 else "")
        raise FieldError("params", f"={params!r} leaves nothing to move; there are: {shown}")
    if len(moved) == len(paths) and density == 1.0:
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
    """Returns ``i32[k]``, increasing: one coordinate of each of k stretches of all coordinates."""
    count = _count(size, density)
    ends = np.arange(count + 1) * size // count  # lengths differ by one at most
    key = keys.stream(keys.run_key(_PLACES), name)
    return jnp.asarray(ends[:-1]) + jax.random.randint(key, (count,), 0, np.diff(ends))
