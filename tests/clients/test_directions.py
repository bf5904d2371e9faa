import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from zo_fl.engine import keys
from zo_fl.zo import directions

DISTRIBUTIONS = ("rademacher", "gaussian", "sphere", "low_rank", "hadamard")
TREE = {"a": np.zeros((3, 5), np.float32), "b": {"c": np.zeros(70, np.float32)}}


def draws(distribution, count, tree, tau=1.0):
    add = directions.create(distribution, tau)
    draw = lambda key: jax.flatten_util.ravel_pytree(add(tree, key, 1.0))[0]  # noqa: E731
    split = jax.jit(jax.random.split, static_argnums=1)
    return np.asarray(jax.jit(jax.vmap(draw))(split(keys.run_key(7), count)))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_second_moment_is_tau_squared_times_the_identity(distribution):
    z = draws(distribution, 40_000, {"a": jnp.zeros((2, 3))}, tau=0.5)
    np.testing.assert_allclose(z.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(z.T @ z / len(z), 0.25 * np.eye(6), atol=0.01)


def test_rademacher_coordinates_are_plus_or_minus_tau_and_balanced():
    z = draws("rademacher", 200, TREE, tau=0.75)
    assert set(np.unique(z)) == {-0.75, 0.75}
    assert abs(z.mean()) < 0.02


def test_low_rank_directions_are_outer_products_of_signs():
    add = jax.jit(directions.create("low_rank", tau=0.75))
    tree = {"kernel": np.zeros((3, 3, 40, 33), np.float32), "bias": np.zeros(70, np.float32)}
    z = jax.device_get(add(tree, keys.run_key(1), 1.0))
    assert all(set(np.unique(leaf)) == {-0.75, 0.75} for leaf in jax.tree.leaves(z))
    assert np.linalg.matrix_rank(z["kernel"].reshape(360, 33)) == 1
    rows, columns = z["kernel"].reshape(360, 33)[:, 0], z["kernel"].reshape(360, 33)[0]
    for signs in (rows, columns, z["bias"]):
        assert 0.2 < np.mean(signs > 0) < 0.8


def test_rows_of_a_hadamard_matrix_are_orthogonal_to_each_other():
    tree = {"a": np.zeros((3, 25), np.float32), "b": {"c": np.zeros(52, np.float32)}}
    z = (
        draws("hadamard", 200, tree, tau=0.75) / 0.75
    )  # d = 127 = 2^7 - 1: all columns but the first
    assert set(np.unique(z)) == {-1, 1}
    assert abs(z.mean()) < 0.1
    products = z @ z.T
    # Where all columns but one are there, the missing one is what is left of zero.
    assert set(np.unique(products)) == {-1, 127}
    assert len(np.unique(z, axis=0)) > 90  # of 128 rows, in 200 draws
    # The signs of neighbours do not follow from their places alone.
    assert np.abs(np.fft.rfft(z, axis=1)).max() < 60


def test_rows_cut_short_are_nearly_orthogonal():
    z = draws("hadamard", 100, {"a": np.zeros(700, np.float32)})
    products = np.abs(z @ z.T)[~np.eye(100, dtype=bool)]
    assert np.median(products) <= 2 and np.mean(products > 26) < 0.06  # 26 = sqrt(700)


@pytest.mark.slow
def test_sphere_directions_have_norm_tau_sqrt_d():
    z = draws("sphere", 50, TREE, tau=0.75)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 0.75 * np.sqrt(85), rtol=1e-5)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_adding_is_linear_in_the_scale(distribution):
    add, key = jax.jit(directions.create(distribution, tau=0.75)), keys.run_key(1)
    unit = add(TREE, key, 1.0)
    for scale in (2.5, -1e-3, 0.0):
        got = add(TREE, key, scale)
        jax.tree.map(
            lambda g, u, s=scale: np.testing.assert_allclose(g, s * np.asarray(u), rtol=1e-6),
            got,
            unit,
        )


@pytest.mark.parametrize("distribution", ("rademacher", "gaussian", "low_rank"))
def test_a_leaf_does_not_depend_on_the_other_leaves_or_their_order(distribution):
    add, key = jax.jit(directions.create(distribution, tau=1.0)), keys.run_key(3)
    alone = add({"b": TREE["b"]}, key, 1.0)
    together = add(TREE, key, 1.0)
    np.testing.assert_array_equal(alone["b"]["c"], together["b"]["c"])


def test_directions_of_different_keys_and_leaves_are_different():
    add = jax.jit(directions.create("rademacher", tau=1.0))
    tree = {"a": np.zeros(640, np.float32), "b": np.zeros(640, np.float32)}
    one, two = (add(tree, keys.run_key(seed), 1.0) for seed in (0, 1))
    for left, right in ((one["a"], one["b"]), (one["a"], two["a"])):
        assert abs(np.mean(np.asarray(left) * right)) < 0.2
