"""Kernels by spherical k-means of windows, a sweep a round; clients send sums alone.

    client: random windows u of its images, of norm 1; for each kernel z_k the sum and the number of
            those whose largest product is that with z_k
    server: z_k = sum / |sum|; a kernel without windows copies one that has many; both are
            disturbed, and share these windows at the next sweep

Source: Coates and Ng 2012, "Learning Feature Representations with K-means". To split kernels that
have many is as old as Linde, Buzo and Gray 1980.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zo_fl.engine import keys
from zo_fl.engine.algorithm import ClientBatch
from zo_fl.engine.types import Array
from zo_fl.heads import closed_form, window_sums
from zo_fl.heads.window_sums import Look
from zo_fl.models.kernel_network import unit_columns

_EACH = 24  # windows of an image that a sweep looks at
_DISTURBANCE = 0.1  # norm of what is added to copies, beside a kernel's 1


class Assigned(NamedTuple):
    """The windows of each kernel.

    Attributes:
      sums: ``f32[d, K]``, of windows of norm 1.
      counts: ``f32[K]``.
    """

    sums: Array
    counts: Array


def assign(
    look: Look,
    batch: ClientBatch,
    kernel: Array,
    key: Array,
    units: Callable[[Array], Array] = lambda seen: unit_columns(seen.T).T,
) -> Assigned:
    """Returns what a client sends.

    Args:
      look: makes windows of images.
      batch: the client's examples.
      kernel: ``f32[d, K]``, of norm 1 each.
      key: of this client and sweep.
      units: ``f32[m, d] -> f32[m, d]``, makes windows of norm 1 of the windows that it looks at.
    """
    dim, count = kernel.shape

    def add(before: Assigned, seen: Array, mask: Array, part: Array) -> Assigned:
        seen = seen.reshape(len(seen), -1, seen.shape[-1])
        of_part = jax.random.fold_in(key, part)
        places = jax.random.randint(of_part, (len(seen), _EACH, 1), 0, seen.shape[1])
        some = units(jnp.take_along_axis(seen, places, axis=1).reshape(-1, seen.shape[-1]))
        nearest = jnp.argmax(some @ kernel, axis=1)
        chosen = jax.nn.one_hot(nearest, count) * jnp.repeat(mask, _EACH)[:, None]
        sums = closed_form.product(some.T, chosen)
        return Assigned(before.sums + sums, before.counts + chosen.sum(0))

    zeros = Assigned(jnp.zeros((dim, count)), jnp.zeros(count))
    return window_sums.over_images(look, batch, add, zeros)


def moved(found: Assigned, kernel: Array, key: Array) -> Array:
    """Returns the kernels ``f32[d, K]`` after a sweep, from those before and everyone's sums."""
    counts, empty = found.counts, found.counts == 0
    new = jnp.where(empty[None], kernel, unit_columns(found.sums))
    # The i-th of E empty ones copies the kernel of the window at (i - 1/2) / E of all windows.
    share = (jnp.cumsum(empty) - 0.5) / jnp.maximum(empty.sum(), 1)
    copied = jnp.searchsorted(jnp.cumsum(counts), share * counts.sum())
    copied = jnp.where(empty, copied, jnp.arange(len(counts)))
    twice = jnp.zeros_like(counts).at[copied].add(1.0)[copied] > 1
    away = unit_columns(jax.random.normal(keys.stream(key, "copies"), kernel.shape))
    return unit_columns(new[:, copied] + jnp.where(twice, _DISTURBANCE, 0.0)[None] * away)
