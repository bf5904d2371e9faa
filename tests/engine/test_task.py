"""Preprocessing: what augmentation and normalization do to images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.data import fakes
from zo_fl.engine import image_task, keys

crop_and_flip = jax.jit(image_task.crop_and_flip)


def _all_outcomes(image):
    """Returns every crop of the zero-padded image, plain and mirrored, as a set of bytes."""
    height, width, _ = image.shape
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    crops = [padded[y : y + height, x : x + width] for y in range(9) for x in range(9)]
    return {crop.tobytes() for plain in crops for crop in (plain, plain[:, ::-1])}


@pytest.mark.parametrize("shape", [(8, 8, 3), (6, 10, 1)])
def test_augmented_images_are_shifts_by_up_to_4_pixels_perhaps_mirrored(shape):
    images = fakes.pictures(40, shape)
    found = np.asarray(crop_and_flip(keys.run_key(0), images))
    assert found.shape == images.shape and found.dtype == np.uint8
    assert all(new.tobytes() in _all_outcomes(old) for new, old in zip(found, images, strict=True))


def test_equal_keys_see_equal_images_and_others_do_not():
    images = fakes.pictures(16, (8, 8, 3))
    first, again, other = (crop_and_flip(keys.run_key(s), images) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("leading", [(), (5,), (2, 5)])
def test_normalize_subtracts_the_mean_and_divides_by_the_deviation(leading):
    images = fakes.pictures(1, (*leading, 4, 4, 3))[0]
    mean, std = np.array([0.5, 0.4, 0.3], np.float32), np.array([0.2, 0.3, 0.25], np.float32)
    found = jax.jit(image_task.normalize)(images, mean, std)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, (images / 255 - mean) / std, atol=1e-5)
