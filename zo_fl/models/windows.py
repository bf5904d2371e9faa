"""All windows of images, for models of image patches."""

import jax
import jax.numpy as jnp

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
