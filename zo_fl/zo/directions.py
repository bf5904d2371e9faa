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

Sources: ZOWarmUp, Algorithm 1 line 23 and section 3.2; Fang et al. 2022 for the sphere; LOZO (arXiv
2410.07698) and EGGROLL (2511.16652) for low ranks, with Gaussian factors: of signs, all coordinates
have the same size, as Rademacher's.
"""

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.random import threefry2x32_p

from zo_fl.engine import keys
from zo_fl.engine.types import Array, Params

AddDirection = Callable[[Params, Array, Array | float], Params]


def create(distribution: str, tau: float) -> AddDirection:
    """Returns ``add_direction(tree, key, scale) -> tree + scale * z(key)``.

    The tree has ``f32`` leaves, the key is ``key[]``, the scale ``f32[]``. Each leaf's numbers
    depend on the key, the leaf's path and its shape, not on the other leaves (but for a sphere,
    which divides by the norm of all of them).

    Args:
      distribution: a name in ``DISTRIBUTIONS``.
      tau: standard deviation of a coordinate of z, > 0.
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


def _normals(tree: Params, leaf_keys: Array) -> Params:
    """Returns standard normal draws like a tree's leaves."""
    leaves, treedef = jax.tree.flatten(tree)
    words = _words(leaf_keys, [leaf.size for leaf in leaves])
    draws = [_normal(word).reshape(leaf.shape) for word, leaf in zip(words, leaves, strict=True)]
    return treedef.unflatten(draws)


def _normal(words: Array) -> Array:
    """Returns ``f32[n]`` standard normal numbers from ``u32[n]``, by the inverse error function."""
    # 23 random bits as the mantissa of a number in [1, 2), moved to [-1, 1); -1 itself would give
    # minus infinity.
    mantissa = (words >> 9) | jnp.uint32(0x3F800000)
    uniform = 2 * jax.lax.bitcast_convert_type(mantissa, jnp.float32) - 3
    uniform = jnp.maximum(uniform, np.nextafter(np.float32(-1), np.float32(0)))
    return np.float32(math.sqrt(2)) * jax.lax.erf_inv(uniform)


def _add_gaussian(tree: Params, leaf_keys: Array, scale: Array) -> Params:
    return optax.tree.add_scale(tree, scale, _normals(tree, leaf_keys))


def _add_sphere(tree: Params, leaf_keys: Array, scale: Array) -> Params:
    draws = _normals(tree, leaf_keys)
    squares = sum(jnp.sum(jnp.square(draw)) for draw in jax.tree.leaves(draws))
    factor = scale * jnp.sqrt(optax.tree.size(draws) / squares)
    return optax.tree.add_scale(tree, factor, draws)


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
