"""Packed sums and the heads that follow from them, against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.heads.problems import centered, logits
from zo_fl.heads import closed_form, messages
from zo_fl.heads.closed_form import Moments

RNG = np.random.default_rng(0)
# Compiled whole: op by op takes many times as long.
ridge, discriminant = jax.jit(closed_form.ridge), jax.jit(closed_form.discriminant)
within_covariance = jax.jit(closed_form.within_covariance)
packed_product = jax.jit(closed_form.packed_product)


def example(n=400, d=7, classes=4):
    labels = RNG.integers(0, classes, n)
    centers = RNG.normal(0, 1, (classes, d))
    return centers[labels] + RNG.normal(0, 1, (n, d)) + 2, labels


def moments_of(h, labels, classes=4):
    one_hot = np.eye(classes)[labels]
    packed = packed_product(jnp.asarray(h, jnp.float32))
    return Moments(packed, jnp.float32(h.T @ one_hot), jnp.float32(one_hot.sum(0)))


@pytest.mark.parametrize("dim", (1, 131, pytest.param(300, marks=pytest.mark.slow)))
def test_packing_keeps_the_upper_triangle_and_nothing_else(dim):
    h = RNG.normal(0, 1, (9, dim)).astype(np.float32)

    @jax.jit
    def there_and_back(h):
        packed = closed_form.packed_product(h)
        return packed, closed_form.unpack(packed, dim), closed_form.packed_diagonal(packed, dim)

    packed, whole, diagonal = there_and_back(h)
    assert packed.shape == (dim * (dim + 1) // 2,)
    np.testing.assert_allclose(whole, h.T @ h, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(diagonal, np.diag(whole))


def test_ridge_is_that_of_standardized_features_and_leaves_constant_ones_out():
    h, labels = example()
    h[:, 3] = 5.0
    heads = ridge(moments_of(h, labels), jnp.float32([0.01, 1.0]))
    mean, std = h.mean(0), h.std(0)
    std[3] = np.inf
    x, y = (h - mean) / std, np.eye(4)[labels]
    for i, penalty in enumerate((0.01, 1.0)):
        weights = np.linalg.solve(x.T @ x / len(x) + penalty * np.eye(7), x.T @ y / len(x))
        expected = x @ weights + y.mean(0)
        got = logits(heads.at(i), h)
        np.testing.assert_allclose(got, expected, atol=2e-5)


def test_the_discriminant_is_the_log_posterior_of_gaussian_classes():
    h, labels = example()
    sums = moments_of(h, labels)
    covariance = within_covariance(sums)
    means = np.stack([h[labels == k].mean(0) for k in range(4)])
    residuals = h - means[labels]
    expected = residuals.T @ residuals / len(h)
    np.testing.assert_allclose(covariance, expected, atol=1e-4)
    heads = discriminant(sums.class_sums, sums.class_counts, covariance, jnp.float32([0.1]))
    shrunk = expected + 0.1 * np.trace(expected) / 7 * np.eye(7)
    distances = [np.einsum("nd,dn->n", h - m, np.linalg.solve(shrunk, (h - m).T)) for m in means]
    log_prior = np.log(np.bincount(labels) / len(labels))
    log_posterior = log_prior - np.stack(distances, axis=1) / 2
    got = centered(logits(heads.at(0), h))
    np.testing.assert_allclose(got, centered(log_posterior), atol=2e-3)


def test_a_class_that_nobody_holds_is_not_predicted():
    h, labels = example()
    labels[labels == 2] = 1
    sums = moments_of(h, labels)
    heads = discriminant(sums.class_sums, sums.class_counts, jnp.eye(7), jnp.float32([0.1]))
    assert 2 not in np.argmax(logits(heads.at(0), h), 1)


def test_a_basis_of_all_directions_loses_nothing_and_unfolds():
    h, labels = example()
    sums = moments_of(h, labels)
    basis = jax.jit(closed_form.principal_basis, static_argnums=1)(sums, 7, jnp.zeros(7))
    seen = np.asarray(closed_form.project(basis, jnp.float32(h)))
    heads = closed_form.unfold(basis, ridge(moments_of(seen, labels), jnp.float32([1e-5])))
    whole = ridge(sums, jnp.float32([1e-5]))
    np.testing.assert_allclose(logits(heads.at(0), h), logits(whole.at(0), h), atol=1e-3)


def test_an_indefinite_matrix_gives_a_head_of_nan_instead_of_a_wrong_one():
    h, labels = example()
    sums = moments_of(h, labels)
    heads = ridge(sums._replace(gram=sums.gram.at[1].add(1e6)), jnp.float32([1e-4]))
    assert not np.isfinite(heads.kernel[0]).any()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, error, size",
    (("float16", 5e-4, 2 * 6 + 4), ("int8", 4e-3, 6 + 4), ("int4", 0.08, 7)),
)
def test_encodings_err_by_half_a_step_and_take_the_bytes_that_they_say(name, error, size):
    vectors = jnp.float32(RNG.normal(0, 3, (5, 6)))
    encode = jax.jit(messages.encode, static_argnums=0)
    decode = jax.jit(messages.decode, static_argnums=(0, 2))
    sent = encode(name, vectors)
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    assert np.all(abs(decode(name, sent, 6) - np.asarray(vectors)) <= error * largest)
    got = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(sent))
    assert got == 5 * size
    np.testing.assert_array_equal(decode(name, encode(name, jnp.zeros((2, 5))), 5), 0)


@pytest.mark.parametrize("name, error", (("float16", 1e-3), ("int4", 0.15)))
def test_encoded_moments_err_by_a_share_of_the_deviations(name, error):
    h, labels = example(d=5)
    sums = moments_of(h, labels)
    found = jax.jit(
        lambda sums: messages.decode_moments(name, messages.encode_moments(name, sums))
    )(sums)
    covariance = jax.jit(closed_form.mean_and_covariance)
    expected, got = (np.asarray(covariance(one)[1]) for one in (sums, found))
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    assert np.all(abs(got - expected) <= error * scale)
    np.testing.assert_array_equal(found.class_sums, sums.class_sums)


def test_features_that_vary_nowhere_make_finite_heads():
    counts = jnp.array([3.0, 2.0])
    sums = jnp.ones((4, 2)) * counts[None]
    heads = closed_form.discriminant(sums, counts, jnp.zeros((4, 4)), jnp.array([0.1, 1.0]))
    assert np.all(np.isfinite(heads.kernel)) and np.all(np.isfinite(heads.bias))
    assert np.all(heads.bias[:, 0] > heads.bias[:, 1]), "the class with more examples"
    gram = closed_form.pack(closed_form.gram_blocks(jnp.ones((5, 4))))
    basis = closed_form.principal_basis(closed_form.Moments(gram, sums, counts), 2, jnp.zeros(4))
    assert np.all(np.isfinite(basis.directions))
