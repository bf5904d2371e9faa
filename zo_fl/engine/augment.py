"""Images to network inputs, and the training augmentation of CIFAR. Pure; runs inside ``jit``."""

import jax
import jax.numpy as jnp
import numpy as np

from zo_fl.engine.types import Array

PADDING = 4


def normalize(images: Array, mean: Array | np.ndarray, std: Array | np.ndarray) -> Array:
    """Returns ``(images / 255 - mean) / std``, without the 255 for floating-point images.

    Args:
      images: ``u8`` or ``f32[..., H, W, c]``.
      mean: ``f32[c]`` channel means of the pixels, of ``u8`` ones divided by 255.
      std: ``f32[c]`` channel standard deviations, likewise.

    Returns:
      ``f32[..., H, W, c]``.
    """
    # One multiplication and one addition a pixel instead of two divisions.
    white = 255.0 if jnp.issubdtype(images.dtype, jnp.integer) else 1.0
    scale = 1.0 / (white * jnp.asarray(std, jnp.float32))
    shift = -jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    axes = tuple(range(images.ndim - 1))  # explicit: implicit rank promotion may be an error
    return images.astype(jnp.float32) * jnp.expand_dims(scale, axes) + jnp.expand_dims(shift, axes)


def crop_and_flip(key: Array, images: Array) -> Array:
    """Returns each image shifted by up to 4 pixels, zeros moving in, and mirrored half the time.

    The same as zero padding by 4 and a random crop of the first size. A pure function of the key:
    both sides of a two-sided difference, and all directions of a client, must see the same images,
    else the augmentation swamps loss differences of 1e-4.

    Args:
      key: ``key[]``.
      images: ``[n, H, W, c]`` of any dtype.

    Returns:
      ``[n, H, W, c]``, likewise.
    """
    crop, flip = jax.random.split(key)
    offsets = jax.random.randint(crop, (len(images), 2), 0, 2 * PADDING + 1)
    mirrored = jax.random.bernoulli(flip, 0.5, (len(images),))
    return jax.vmap(_crop_and_flip_one)(images, offsets, mirrored)


def _crop_and_flip_one(image: Array, offset: Array, mirrored: Array) -> Array:
    """Returns one image ``u8[H, W, c]`` cropped at ``offset`` ``i32[2]`` and perhaps mirrored."""
    height, width, _ = image.shape
    padded = jnp.pad(image, ((PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    columns = jnp.arange(width)
    columns = jnp.where(mirrored, columns[::-1], columns)
    # Rows, then columns: two gathers of slices. On 2 CPU cores (900 images of 32x32, jax 0.10.2)
    # 0.9 ms against 1.2 ms for one gather of pixels, 2.7 ms for a vmapped dynamic_slice (XLA makes
    # a loop of it) and 57 ms for a select among all shifts.
    rows = jnp.take(padded, offset[0] + jnp.arange(height), axis=0)
    return jnp.take(rows, offset[1] + columns, axis=1)
