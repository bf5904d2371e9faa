"""Directions of fewer coordinates: which ones move, and that the others stay."""

import math

import chex
import jax
import numpy as np
import pytest

from tests import tiny
from zo_fl.engine import keys
from zo_fl.engine.fields import ConfigError
from zo_fl.zo import directions, subspace

LIKE = {
    "conv": {"kernel": np.zeros((3, 3, 4, 50), "f4"), "bias": np.zeros(50, "f4")},
    "norm": {"scale": np.zeros(50, "f4")},
    "head": {"kernel": np.zeros((50, 10), "f4"), "bias": np.zeros(10, "f4")},
}


def test_patterns_choose_paths():
    everything = ["conv/bias", "conv/kernel", "head/bias", "head/kernel", "norm/scale"]
    for patterns, paths in (
        ("*", "conv/bias conv/kernel head/bias head/kernel norm/scale"),
        ("head/*", "head/bias head/kernel"),
        ("!head/*", "conv/bias conv/kernel norm/scale"),
        ("norm*, */bias", "conv/bias head/bias norm/scale"),
        ("conv/*,!*/bias", "conv/kernel"),
        ("nothing", ""),
    ):
        assert subspace.chosen(patterns, everything) == paths.split(), patterns


# A sphere is that of what moves.
@pytest.mark.parametrize("distribution", ("rademacher", "sphere"))
def test_what_moves_moves_as_without_the_others_and_they_stay(distribution):
    whole, key = directions.create(distribution, 0.5), keys.run_key(3)
    add = subspace.restrict(whole, "!conv/*", 1.0, LIKE)
    moved = jax.jit(add)(LIKE, key, 2.0)
    chex.assert_trees_all_equal(moved["conv"], LIKE["conv"])
    alone = jax.jit(whole)({name: LIKE[name] for name in ("norm", "head")}, key, 2.0)
    chex.assert_trees_all_equal({name: moved[name] for name in alone}, alone)
    assert subspace.restrict(whole, "*", 1.0, LIKE) is whole


def test_a_density_moves_the_same_few_coordinates_of_every_array_in_every_direction():
    add = jax.jit(subspace.restrict(directions.create("rademacher", 0.5), "*", 0.01, LIKE))
    one, other = (add(LIKE, keys.run_key(seed), 1.0) for seed in (0, 1))
    pairs = list(zip(*map(jax.tree.leaves, (one, other, LIKE)), strict=True))
    for a, b, leaf in pairs:
        places = np.flatnonzero(a)
        assert len(places) == max(1, round(0.01 * leaf.size))
        np.testing.assert_array_equal(places, np.flatnonzero(b))
        assert set(np.abs(np.ravel(a)[places])) == {0.5}
    assert any(not np.array_equal(a, b) for a, b, _ in pairs)
    assert subspace.dimension("*", 0.01, LIKE) == sum(np.count_nonzero(a) for a, _, _ in pairs)


def test_nothing_to_move_is_one_line_that_lists_what_there_is():
    with pytest.raises(ConfigError, match=r"config\.zo\.params='haed/\*' leaves nothing") as caught:
        tiny.build("zo", zo__params="haed/*")
    assert "hidden/kernel" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("size", "density"), ((1003, 0.01), (1000, 0.4), (1003, 0.99)))
def test_a_density_leaves_out_no_part_of_an_array(size, density):
    places = np.asarray(subspace._places("kernel", size, density))
    stretch = math.ceil(size / len(places))
    assert len(places) == round(size * density)
    assert np.diff(places).min() >= 1 and np.diff(places).max() < 2 * stretch
    assert places[0] < stretch and places[-1] >= size - stretch
