"""All windows of images and means over places, for models of image patches."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from zo_fl.engine.types import Array


def windows(x: Array, size: int) -> Array:
    """Returns all windows of ``f32[n, H, W, c]``, as ``f32[n, H', W', size * size * c]``.

    ``size`` is the height and width of a window.
    """
    height, width = (side - size + 1 for side in x.shape[1:3])
    # Columns, then rows: twelve slices compile six times faster than 36.
    columns = [x[:, :, start : start + width] for start in range(size)]
    strips = jnp.concatenate(columns, axis=-1)
    rows = [strips[:, start : start + height] for start in range(size)]
    return jnp.concatenate(rows, axis=-1)


def mean_over_last(seen: Array) -> Array:
    """Returns means over the last axis by a product; with a sum XLA:CPU would copy the terms."""
    shares = jnp.full((seen.shape[-1], 1), 1 / seen.shape[-1], seen.dtype)
    return jnp.matmul(seen, shares, precision=jax.lax.Precision.HIGHEST)


def pool(x: Array, axis: int, weights: np.ndarray) -> Array:
    """Returns weighted sums along an axis, one for each row of ``weights: f32[places, n]``.

    XLA:CPU vectorizes additions of slices; a sum along any axis but the last, fused with what it
    adds up, it does not: that takes three times as long.
    """
    slices = [jax.lax.index_in_dim(x, i, axis, keepdims=False) for i in range(x.shape[axis])]
    shares = (
        [(w, one) for w, one in zip(row, slices, strict=True) if w] for row in weights.tolist()
    )
    return jnp.stack([sum(w * one for w, one in of_place) for of_place in shares], axis)


def some_at_a_time(function: Callable[..., Array], kernels: tuple[Array, ...], some: int) -> Array:
    """Returns what a function makes of a few kernels, side by side along the last axis.

    Args:
      function: of arrays ``[..., k]``; gives ``[n, ..., m]``.
      kernels: arrays ``[..., K]``.
      some: kernels at once, so that what is made of them stays in the cache.
    """
    count = kernels[0].shape[-1]
    whole = count - count % some

    def split(leaf: Array) -> Array:
        parts = leaf[..., :whole].reshape(*leaf.shape[:-1], -1, some)
        return jnp.moveaxis(parts, -2, 0)

    found = []
    if whole:
        parts = jax.lax.map(lambda part: function(*part), tuple(map(split, kernels)))
        parts = jnp.moveaxis(parts, 0, -2)
        found.append(parts.reshape(*parts.shape[:-2], -1))
    if whole < count:
        found.append(function(*(leaf[..., whole:] for leaf in kernels)))
    return jnp.concatenate(found, axis=-1)
