"""Preprocessing: what augmentation and normalization do to images."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.data import fakes
from zo_fl.engine import image_task, keys

crop_and_flip = jax.jit(image_task.crop_and_flip)


def _all_outcomes(image):
    """Returns every crop of the zero-padded image, plain and mirrored, as a set of bytes."""
    height, width, _ = image.shape
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    crops = [padded[y : y + height, x : x + width] for y in range(9) for x in range(9)]
    return {crop.tobytes() for plain in crops for crop in (plain, plain[:, ::-1])}


def test_augmented_images_are_shifts_by_up_to_4_pixels_perhaps_mirrored_by_the_key():
    images = fakes.pictures(40, (6, 10, 1))
    found, other = (np.asarray(crop_and_flip(keys.run_key(seed), images)) for seed in (0, 1))
    assert found.shape == images.shape and found.dtype == np.uint8
    assert all(new.tobytes() in _all_outcomes(old) for new, old in zip(found, images, strict=True))
    assert not np.array_equal(found, other)


def test_normalize_subtracts_the_mean_and_divides_by_the_deviation():
    images = fakes.pictures(2, (5, 4, 4, 3))
    mean, std = np.array([0.5, 0.4, 0.3], np.float32), np.array([0.2, 0.3, 0.25], np.float32)
    found = jax.jit(image_task.normalize)(images, mean, std)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, (images / 255 - mean) / std, atol=1e-5)
