"""The model of image patches equals its formula, written again as loops in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zo_fl.models.patches import Patches


def pooled(images, kernel, bias, contrast):
    n, height, width, _ = images.shape
    size, count = kernel.shape[0], kernel.shape[-1]
    rows, columns = height - size + 1, width - size + 1
    responses = np.zeros((n, rows, columns, count))
    for row in range(rows):
        for column in range(columns):
            patch = images[:, row : row + size, column : column + size].reshape(n, -1)
            if contrast:
                patch = patch - patch.mean(1, keepdims=True)
                patch = patch / np.sqrt((patch**2).mean(1, keepdims=True) + 0.1)
            responses[:, row, column] = patch @ kernel.reshape(-1, count) + bias
    down, right = -(-rows // 2), -(-columns // 2)
    found = []
    for sign in (1, -1):
        passed = np.maximum(sign * responses - 0.25, 0)
        for top in (slice(0, down), slice(down, None)):
            for side in (slice(0, right), slice(right, None)):
                found.append(passed[:, top, side].mean((1, 2)))
    return np.concatenate(found, axis=1)


def looped(images, kernel, bias, contrast, mirror):
    views = [images, images[:, :, ::-1]] if mirror else [images]
    return np.sqrt(np.mean([pooled(v, kernel, bias, contrast) for v in views], 0) + 0.01)


@pytest.mark.parametrize(
    ("norm", "mirror", "height", "width"), (("none", False, 8, 8), ("patch", True, 9, 7))
)
def test_patches_are_their_formula(norm, mirror, height, width):
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(3, 3, 2, 5)), rng.normal(size=5)
    images = rng.normal(size=(4, height, width, 2))
    model = Patches(40, norm, kernels=5, size=3, mirror=mirror)
    filters = {"kernel": np.float32(kernel), "bias": np.float32(bias)}
    head = {"kernel": np.eye(40, dtype=np.float32), "bias": np.zeros(40, np.float32)}
    variables = {"params": {"filters": filters, "head": head}}
    features = jax.jit(functools.partial(model.apply, train=False))(variables, np.float32(images))
    expected = looped(images, kernel, bias, norm == "patch", mirror)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_for_products_of_patches_and_never_for_the_network():
    rng = np.random.default_rng(0)
    # Numbers that bfloat16 holds: all that differs is the rounding of products.
    images = np.float32(rng.integers(-128, 128, size=(4, 12, 11, 3))) / 64
    model = Patches(3, "patch", kernels=8, size=3, network=8)

    @jax.jit
    def of_dtype(dtype_of):
        variables = model.init(jax.random.key(0), images, train=False)
        given = images.astype(dtype_of.dtype)
        _, seen = model.apply(variables, given, train=False, capture_intermediates=True)
        return [seen["intermediates"][name]["__call__"][0] for name in ("filters", "network")]

    exact, narrow = (of_dtype(jnp.zeros(0, dtype)) for dtype in (jnp.float32, jnp.bfloat16))
    assert {leaf.dtype for leaf in exact + narrow} == {jnp.dtype(jnp.float32)}
    assert 0 < np.abs(exact[0] - narrow[0]).mean() < 0.01 * np.std(exact[0])
    np.testing.assert_array_equal(exact[1], narrow[1])


@pytest.mark.slow
def test_its_gradient_is_finite_where_nothing_passes_a_threshold():
    model = Patches(3, kernels=2, size=3)
    images = np.zeros((1, 8, 8, 1), np.float32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    loss = lambda params: model.apply(params, images, train=False).sum()  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
