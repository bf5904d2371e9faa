import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.data import fakes
from zo_fl.engine import augment, keys

crop_and_flip = jax.jit(augment.crop_and_flip)


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


@pytest.mark.slow
def test_every_shift_and_flip_occurs_about_equally_often():
    image = fakes.pictures(1, (8, 8, 1))[0]
    found = np.asarray(crop_and_flip(keys.run_key(1), np.broadcast_to(image, (8100, *image.shape))))
    _, counts = np.unique(found.reshape(8100, -1), axis=0, return_counts=True)
    assert len(counts) == 162
    assert counts.min() > 15 and counts.max() < 95  # 50 expected, deviation 7


def test_equal_keys_see_equal_images_and_others_do_not():
    images = fakes.pictures(16, (8, 8, 3))
    first, again, other = (crop_and_flip(keys.run_key(s), images) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.slow
def test_jit_and_vmap_change_nothing():
    images = fakes.pictures(24, (8, 8, 3)).reshape(3, 8, 8, 8, 3)
    three = jax.vmap(keys.run_key)(jnp.arange(3))
    mapped = jax.jit(jax.vmap(augment.crop_and_flip))(three, images)
    for client in range(3):
        np.testing.assert_array_equal(
            mapped[client], augment.crop_and_flip(three[client], images[client])
        )


@pytest.mark.parametrize("leading", [(), (5,), (2, 5)])
def test_normalize_subtracts_the_mean_and_divides_by_the_deviation(leading):
    images = fakes.pictures(1, (*leading, 4, 4, 3))[0]
    mean, std = np.array([0.5, 0.4, 0.3], np.float32), np.array([0.2, 0.3, 0.25], np.float32)
    found = jax.jit(augment.normalize)(images, mean, std)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, (images / 255 - mean) / std, atol=1e-5)
