"""Random directions: their moments, their values, and what they depend on."""

import functools

import chex
import jax
import numpy as np
import pytest

from zo_fl.engine import keys
from zo_fl.zo import directions

TAU = 0.75
TREE = {
    "kernel": np.zeros((3, 3, 40, 33), np.float32),
    "more": {"bias": np.zeros(700, np.float32)},
}
of_all = pytest.mark.parametrize("distribution", directions.DISTRIBUTIONS)


@functools.cache
def adding(distribution):
    return jax.jit(directions.create(distribution, TAU))


def drawn(distribution, seed=1):
    return jax.device_get(adding(distribution)(TREE, keys.run_key(seed), 1.0))


@of_all
def test_the_second_moment_is_tau_squared_times_the_identity(distribution):
    add, tree = directions.create(distribution, TAU), {"a": np.zeros((2, 3), np.float32)}
    many = jax.jit(jax.vmap(lambda i: add(tree, jax.random.fold_in(keys.run_key(7), i), 1.0)["a"]))
    z = np.asarray(many(np.arange(40_000))).reshape(-1, 6) / TAU
    np.testing.assert_allclose(z.mean(0), 0, atol=0.03)
    np.testing.assert_allclose(z.T @ z / len(z), np.eye(6), atol=0.03)
    if distribution == "gaussian":
        np.testing.assert_allclose(np.mean(z**4), 3, atol=0.1)


@pytest.mark.parametrize("distribution", ("rademacher", "low_rank"))
def test_coordinates_are_plus_or_minus_tau(distribution):
    assert all(set(np.unique(z)) == {-TAU, TAU} for z in jax.tree.leaves(drawn(distribution)))


def test_low_rank_directions_are_outer_products():
    z = drawn("low_rank")
    matrix = z["kernel"].reshape(360, 33)
    assert np.linalg.matrix_rank(matrix) == 1
    for signs in (matrix[:, 0], matrix[0], z["more"]["bias"]):
        assert 0.2 < np.mean(signs > 0) < 0.8


def test_sphere_directions_have_norm_tau_sqrt_d():
    flat = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(drawn("sphere"))])
    np.testing.assert_allclose(np.linalg.norm(flat), TAU * np.sqrt(len(flat)), rtol=1e-5)


@of_all
def test_adding_is_linear_in_the_scale(distribution):
    for scale in (2.5, -1e-3, 0.0):
        added = adding(distribution)(TREE, keys.run_key(1), scale)
        expected = jax.tree.map(lambda leaf, s=scale: s * leaf, drawn(distribution))
        chex.assert_trees_all_close(added, expected, rtol=1e-6)


@pytest.mark.parametrize("distribution", sorted(directions.DISTRIBUTIONS.keys() - {"sphere"}))
def test_a_leaf_does_not_depend_on_the_other_leaves(distribution):
    alone = adding(distribution)({"more": TREE["more"]}, keys.run_key(1), 1.0)
    chex.assert_trees_all_equal(alone["more"], drawn(distribution)["more"])


def test_directions_of_different_keys_and_leaves_are_different():
    one, two = drawn("rademacher", seed=0), drawn("rademacher", seed=1)
    for other in (one["kernel"].ravel()[:700], two["more"]["bias"]):
        assert abs(np.mean(one["more"]["bias"] * other)) < 0.1
