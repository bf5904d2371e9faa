"""Random directions: their moments, what they depend on, and what they leave alone."""

import math

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from zo_fl.engine import keys
from zo_fl.engine.fields import ConfigError
from zo_fl.zo import directions

TREE = {"a": np.zeros((3, 5), np.float32), "b": {"c": np.zeros(70, np.float32)}}
LIKE = {
    "conv": {"kernel": np.zeros((3, 3, 4, 50), "f4"), "bias": np.zeros(50, "f4")},
    "norm": {"scale": np.zeros(50, "f4")},
    "head": {"kernel": np.zeros((50, 10), "f4"), "bias": np.zeros(10, "f4")},
}
of_all = pytest.mark.parametrize("distribution", directions.DISTRIBUTIONS)


def draws(distribution, count, tree, tau=1.0):
    add = directions.create(distribution, tau)
    draw = lambda key: jax.flatten_util.ravel_pytree(add(tree, key, 1.0))[0]  # noqa: E731
    split = jax.jit(jax.random.split, static_argnums=1)
    return np.asarray(jax.jit(jax.vmap(draw))(split(keys.run_key(7), count)))


@of_all
def test_the_second_moment_is_tau_squared_times_the_identity(distribution):
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


def test_sphere_directions_have_norm_tau_sqrt_d():
    z = draws("sphere", 50, TREE, tau=0.75)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 0.75 * np.sqrt(85), rtol=1e-5)


@of_all
def test_adding_is_linear_in_the_scale(distribution):
    add, key = jax.jit(directions.create(distribution, tau=0.75)), keys.run_key(1)
    unit = add(TREE, key, 1.0)
    for scale in (2.5, -1e-3, 0.0):
        expected = jax.tree.map(lambda leaf, s=scale: s * leaf, unit)
        chex.assert_trees_all_close(add(TREE, key, scale), expected, rtol=1e-6)


@pytest.mark.parametrize("distribution", sorted(directions.DISTRIBUTIONS.keys() - {"sphere"}))
def test_a_leaf_does_not_depend_on_the_other_leaves(distribution):
    add, key = jax.jit(directions.create(distribution, tau=1.0)), keys.run_key(3)
    alone, together = add({"b": TREE["b"]}, key, 1.0), add(TREE, key, 1.0)
    np.testing.assert_array_equal(alone["b"]["c"], together["b"]["c"])


def test_directions_of_different_keys_and_leaves_are_different():
    add = jax.jit(directions.create("rademacher", tau=1.0))
    tree = {"a": np.zeros(640, np.float32), "b": np.zeros(640, np.float32)}
    one, two = (add(tree, keys.run_key(seed), 1.0) for seed in (0, 1))
    for left, right in ((one["a"], one["b"]), (one["a"], two["a"])):
        assert abs(np.mean(np.asarray(left) * right)) < 0.2


@pytest.mark.parametrize(
    ("patterns", "paths"),
    (
        ("*", "conv/bias conv/kernel head/bias head/kernel norm/scale"),
        ("head/*", "head/bias head/kernel"),
        ("!head/*", "conv/bias conv/kernel norm/scale"),
        ("norm*, */bias", "conv/bias head/bias norm/scale"),
        ("conv/*,!*/bias", "conv/kernel"),
        ("nothing", ""),
    ),
)
def test_patterns_choose_paths(patterns, paths):
    everything = ["conv/bias", "conv/kernel", "head/bias", "head/kernel", "norm/scale"]
    assert directions.chosen(patterns, everything) == paths.split()


@of_all
def test_what_moves_moves_as_without_the_others_and_they_stay(distribution):
    whole, key = directions.create(distribution, 0.5), keys.run_key(3)
    add = directions.restrict(whole, "!conv/*", 1.0, LIKE)
    moved = jax.jit(add)(LIKE, key, 2.0)
    chex.assert_trees_all_equal(moved["conv"], LIKE["conv"])
    alone = jax.jit(whole)({name: LIKE[name] for name in ("norm", "head")}, key, 2.0)
    chex.assert_trees_all_equal({name: moved[name] for name in alone}, alone)
    assert directions.restrict(whole, "*", 1.0, LIKE) is whole


def test_a_density_moves_the_same_few_coordinates_of_every_array_in_every_direction():
    add = jax.jit(directions.restrict(directions.create("rademacher", 0.5), "*", 0.01, LIKE))
    one, other = (add(LIKE, keys.run_key(seed), 1.0) for seed in (0, 1))
    pairs = list(zip(*map(jax.tree.leaves, (one, other, LIKE)), strict=True))
    for a, b, leaf in pairs:
        places = np.flatnonzero(a)
        assert len(places) == max(1, round(0.01 * leaf.size))
        np.testing.assert_array_equal(places, np.flatnonzero(b))
        assert set(np.abs(np.ravel(a)[places])) == {0.5}
    assert any(not np.array_equal(a, b) for a, b, _ in pairs)
    assert directions.dimension("*", 0.01, LIKE) == sum(np.count_nonzero(a) for a, _, _ in pairs)


def test_nothing_to_move_is_one_line_that_lists_what_there_is():
    with pytest.raises(ConfigError, match=r"config\.zo\.params='haed/\*' leaves nothing") as caught:
        tiny.build("zo", zo__params="haed/*")
    assert "hidden/kernel" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("density", (0.01, 0.3, 0.4, 0.6, 0.99))
@pytest.mark.parametrize("size", (1000, 1003))
def test_a_density_leaves_out_no_part_of_an_array(size, density):
    places = np.asarray(directions._places("kernel", size, density))
    stretch = math.ceil(size / len(places))
    assert len(places) == round(size * density)
    assert np.diff(places).min() >= 1 and np.diff(places).max() < 2 * stretch
    assert places[0] < stretch and places[-1] >= size - stretch
