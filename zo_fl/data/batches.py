"""The mini-batches of one client's epoch. Pure; runs inside ``jit`` and ``vmap``."""

import jax
import jax.numpy as jnp

from zo_fl.types import Array


def epoch_order(key: Array, mask: Array, batch_size: int) -> tuple[Array, Array]:
    """Returns one epoch of shuffled mini-batches: each real example once, then padding.

    Shapes are static, so a client with few examples has batches that are all padding (an all-False
    mask); the caller must make such a step change nothing.

    Args:
      key: ``key[]``.
      mask: ``bool[n]``, True for a real example.
      batch_size: examples a batch, at least 1; static.

    Returns:
      ``(indices, batch_mask)``: ``i32[num_batches, batch_size]`` rows of the client's arrays, any
      row where the mask is False, and ``bool[num_batches, batch_size]``. ``num_batches`` is
      ``ceil(n / batch_size)``.
    """
    (n,) = mask.shape
    num_batches = -(-n // batch_size)
    # One sort by (padding, 32 random bits) instead of a permutation and a second, stable sort.
    padding = jnp.logical_not(mask).astype(jnp.int32)
    rows = jnp.arange(n, dtype=jnp.int32)
    padding, _, order = jax.lax.sort((padding, jax.random.bits(key, (n,)), rows), num_keys=2)
    spare = (0, num_batches * batch_size - n)
    shape = (num_batches, batch_size)
    return jnp.pad(order, spare).reshape(shape), jnp.pad(padding == 0, spare).reshape(shape)
