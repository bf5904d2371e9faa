"""Directions that are kept to some parameters, and to some of their coordinates."""

import chex
import jax
import numpy as np
import pytest

from tests import tiny
from zo_fl.engine.errors import ConfigError
from zo_fl.engine.round import make_algorithm
from zo_fl.zo import directions, subspaces

LIKE = {
    "conv": {"kernel": np.zeros((3, 3, 4, 50), "f4"), "bias": np.zeros(50, "f4")},
    "norm": {"scale": np.zeros(50, "f4")},
    "head": {"kernel": np.zeros((50, 10), "f4"), "bias": np.zeros(10, "f4")},
}
PATHS = ["conv/bias", "conv/kernel", "head/bias", "head/kernel", "norm/scale"]
KEY = jax.random.key(3)


@pytest.mark.parametrize(
    "patterns, paths",
    (
        ("*", PATHS),
        ("head/*", ["head/bias", "head/kernel"]),
        ("!head/*", ["conv/bias", "conv/kernel", "norm/scale"]),
        ("norm*, */bias", ["conv/bias", "head/bias", "norm/scale"]),
        ("conv/*,!*/bias", ["conv/kernel"]),
        ("nothing", []),
    ),
)
def test_patterns_choose_paths(patterns, paths):
    assert subspaces.chosen(patterns, PATHS) == paths


@pytest.mark.parametrize("distribution", directions.DISTRIBUTIONS)
def test_what_moves_moves_as_without_the_others_and_they_stay(distribution):
    whole = directions.create(distribution, 0.5)
    add = subspaces.restrict(whole, "!conv/*", 1.0, False, LIKE)
    moved = jax.jit(add)(LIKE, KEY, 2.0)
    chex.assert_trees_all_equal(moved["conv"], LIKE["conv"])
    alone = jax.jit(whole)({name: LIKE[name] for name in ("norm", "head")}, KEY, 2.0)
    chex.assert_trees_all_equal({name: moved[name] for name in alone}, alone)
    assert subspaces.restrict(whole, "*", 1.0, False, LIKE) is whole


@pytest.mark.slow
def test_a_density_moves_the_same_few_coordinates_of_every_array_in_every_direction():
    add = jax.jit(subspaces.restrict(directions.create("rademacher", 0.5), "*", 0.01, False, LIKE))
    one, other = (add(LIKE, jax.random.key(seed), 1.0) for seed in (0, 1))
    for a, b, leaf in zip(*map(jax.tree.leaves, (one, other, LIKE)), strict=True):
        places = np.flatnonzero(a)
        assert len(places) == max(1, round(0.01 * leaf.size))
        np.testing.assert_array_equal(places, np.flatnonzero(b))
        assert set(np.abs(np.ravel(a)[places])) == {0.5}
    assert any(
        not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True)
    )
    assert subspaces.dimension("*", 0.01, LIKE) == sum(
        np.count_nonzero(leaf) for leaf in jax.tree.leaves(one)
    )


@pytest.mark.slow
@pytest.mark.parametrize("distribution", ("rademacher", "sphere", "hadamard"))
def test_layers_take_turns_and_directions_are_as_long(distribution):
    whole = directions.create(distribution, 0.5)
    add = subspaces.restrict(whole, "!norm/*", 1.0, True, LIKE)
    keys = jax.random.split(KEY, 40)
    moved = jax.jit(jax.vmap(add, in_axes=(None, 0, None)))(LIKE, keys, 2.0)
    turns = {
        layer: np.stack([np.ravel(leaf.any(tuple(range(1, leaf.ndim)))) for leaf in leaves]).T
        for layer, leaves in ((name, jax.tree.leaves(moved[name])) for name in LIKE)
    }
    assert not turns["norm"].any()
    for layer in ("conv", "head"):  # all of its arrays, or none, in about half of the directions
        np.testing.assert_array_equal(turns[layer][:, 0], turns[layer][:, 1])
    np.testing.assert_array_equal(turns["conv"][:, 0], ~turns["head"][:, 0])
    assert 10 < turns["head"][:, 0].sum() < 30
    alone = {name: LIKE[name] for name in ("conv", "head")}
    longer = jax.jit(jax.vmap(whole, in_axes=(None, 0, None)))(alone, keys, 2.0 * np.sqrt(2))
    for layer, leaves in alone.items():
        chosen = turns[layer][:, 0]
        for name in leaves:
            np.testing.assert_array_equal(
                np.asarray(moved[layer][name])[chosen], np.asarray(longer[layer][name])[chosen]
            )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, changes",
    (
        ("zo", {"params": "head/*"}),
        ("zo", {"params": "!head/*", "density": 0.1, "seed_policy": "shared"}),
        ("fedkseed", {"params": "head/*", "density": 0.5}),
        ("fedzo", {"params": "head/*"}),
        ("decomfl", {"params": "head/*", "by_layer": True}),
    ),
)
def test_a_round_moves_nothing_else_and_can_be_replayed(name, changes):
    built = tiny.build(name, **{f"{name}__{field}": value for field, value in changes.items()})
    (phase,) = built.phases
    state, algorithm = tiny.start(built, phase), make_algorithm(phase, built.engine)
    after, _, records = jax.jit(algorithm.round)(state, built.data, built.run_key)
    for layer in ("hidden", "head"):
        moves = ("head" in changes["params"]) == (layer == "head")
        moves ^= changes["params"].startswith("!")
        changed = [
            np.mean(new != old)
            for new, old in zip(
                *map(jax.tree.leaves, (after.params[layer], state.params[layer])), strict=True
            )
        ]
        assert (max(changed) > 0.05) == moves and (moves or max(changed) == 0)
        assert max(changed) <= changes.get("density", 1.0) + 0.01
    if name != "fedzo":
        replayed = jax.jit(algorithm.apply)(state, records, built.run_key)
        chex.assert_trees_all_equal(replayed.params, after.params)


def test_nothing_to_move_is_one_line():
    with pytest.raises(ConfigError, match=r"config\.zo\.params='haed/\*' leaves nothing") as caught:
        tiny.build("zo", zo__params="haed/*")
    assert "hidden/kernel" in str(caught.value) and "\n" not in str(caught.value)
