"""Windows, means over places, and kernels a few at a time, against loops in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from zo_fl.models import windows

RNG = np.random.default_rng(0)


def test_pooled_places_are_weighted_sums_along_an_axis():
    x, weights = RNG.normal(size=(2, 5, 3)), np.array([[0.5, 0.5, 0, 0, 0], [0, 0, 1, 0, -2.0]])
    found = windows.pool(jnp.float32(x), 1, weights)
    np.testing.assert_allclose(found, np.einsum("pi,nik->npk", weights, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", (2, 6, 7))
def test_kernels_a_few_at_a_time_give_what_all_at_once_do(count):
    x, kernels = (RNG.normal(size=size).astype(np.float32) for size in ((4, 2, 3), (3, count)))
    bias = np.arange(count, dtype=np.float32)
    sizes = []

    def respond(some, shift):
        sizes.append(some.shape[-1])
        return jnp.tanh(x @ some + shift[None, None])

    found = windows.some_at_a_time(respond, (jnp.array(kernels), jnp.array(bias)), 3)
    np.testing.assert_allclose(found, np.tanh(x @ kernels + bias), rtol=1e-5)
    assert max(sizes) <= 3
