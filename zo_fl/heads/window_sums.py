"""Sums over the windows of a client's images, a few images at a time: memory stays flat."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zo_fl.engine import cohorts
from zo_fl.engine.algorithm import ClientBatch
from zo_fl.engine.types import Array, Examples, PyTree
from zo_fl.heads import closed_form
from zo_fl.heads.closed_form import Moments

_IMAGES = 32  # images whose windows are held at once

Look = Callable[[Examples], Array]  # examples -> windows f32[m, H', W', d]


class WindowMoments(NamedTuple):
    """Moments of the windows p of some images.

    Attributes:
      total: ``f32[d]``, sum p.
      gram: ``f32[d (d + 1) / 2]``, sum p p^T, packed.
      images: ``f32[]``.
    """

    total: Array
    gram: Array
    images: Array


def moments(look: Look, batch: ClientBatch) -> WindowMoments:
    """Returns the moments of all windows of a client's images."""

    def add(sums, seen, mask, index):
        seen = jnp.where(mask[:, None, None, None], seen, 0.0).reshape(-1, seen.shape[-1])
        return sums[0] + seen.sum(0), sums[1] + closed_form.packed_product(seen)

    dim = jax.eval_shape(look, batch.examples).shape[-1]
    zeros = jnp.zeros(dim), jnp.zeros(dim * (dim + 1) // 2)
    total, gram = over_images(look, batch, add, zeros)
    return WindowMoments(total, gram, jnp.sum(batch.mask).astype(jnp.float32))


def over_images(
    look: Look,
    batch: ClientBatch,
    add: Callable[[PyTree, Array, Array, Array], PyTree],
    zeros: PyTree,
) -> PyTree:
    """Returns what ``add`` accumulates over the windows of a client's images.

    Args:
      look: makes windows of images.
      batch: the client's examples.
      add: ``(sums, windows f32[m, H', W', d], mask bool[m], part i32[]) -> sums``.
      zeros: the sums to start from.
    """
    rows = min(_IMAGES, max(batch.mask.shape[0], 1))
    parts = cohorts.batched((batch.examples, batch.mask), rows)

    def body(sums, part):
        index, (examples, mask) = part
        return add(sums, look(examples), mask, index), None

    count = jax.tree.leaves(parts)[0].shape[0]
    return jax.lax.scan(body, zeros, (jnp.arange(count), parts))[0]


def mean_and_covariance(found: WindowMoments, windows: int) -> tuple[Array, Array]:
    """Returns mean ``f32[d]`` and covariance ``f32[d, d]`` of windows, so many of an image."""
    of_one_class = Moments(found.gram, found.total[:, None], (found.images * windows)[None])
    return closed_form.mean_and_covariance(of_one_class)
