"""Rules of aggregation against NumPy's and SciPy's, and what a round makes of them."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tests import tiny
from zo_fl.engine import trees
from zo_fl.engine.algorithm import Reducer
from zo_fl.wrap import robust

MIDDLES = ("median", "trimmed_mean")
TRIM = 0.2


def middle(rule, trim=TRIM):
    return robust.RULES[rule](Reducer(), trim).middle


def updates(clients=11, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(clients, 3, 2)).astype(np.float32)


@pytest.mark.parametrize("rule", MIDDLES)
def test_each_coordinate_is_numpy_s_by_itself(rule):
    for clients in (1, 2, 5, 10, 11):
        stacked = updates(clients)
        found = middle(rule)({"w": jnp.array(stacked)}, jnp.ones(clients))["w"]
        trimmed = scipy.stats.trim_mean(stacked, TRIM, axis=0)
        expected = np.median(stacked, axis=0) if rule == "median" else trimmed
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", MIDDLES)
def test_who_has_no_weight_has_no_say(rule):
    stacked, weights = updates(), np.arange(11) % 3
    stacked[weights == 0] = 1e9
    found = middle(rule)(jnp.array(stacked), jnp.array(weights, jnp.float32))
    alone = stacked[weights > 0]
    expected = middle(rule)(jnp.array(alone), jnp.ones(len(alone)))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_clipping_leaves_nobody_longer_than_the_median():
    lengths, weights = np.linspace(1, 11, 11, dtype=np.float32), np.ones(11, np.float32)
    lengths[0], weights[1] = 1e3, 0
    factors = np.asarray(robust.clip_factors(jnp.array(lengths), jnp.array(weights)))
    median = np.median(lengths[weights > 0])
    np.testing.assert_allclose(factors * lengths, np.minimum(lengths, median), rtol=1e-6)


def test_sums_are_clipped_and_never_taken_coordinate_by_coordinate():
    of_sums = Reducer(is_sum=True, tolerant=True)
    for rule in (*MIDDLES, "clip"):
        found = robust.RULES[rule](of_sums, TRIM)
        assert found == of_sums._replace(factors=robust.clip_factors) and found.looks_at_all
    assert robust.RULES["mean"](of_sums, TRIM) is of_sums


# How a round reduces: dense updates, scalars along directions of each client's own, shared ones.
CASES = (("fedavg_all", {}), ("zo", {}), ("zo", {"zo__seed_policy": "shared"}))
of_every_kind = pytest.mark.parametrize(("algorithm", "changes"), CASES, ids=str)


@functools.cache
def built_of(algorithm, *changes):
    return tiny.build(algorithm, **dict(changes))


def lying(phase, factor):
    """Returns a phase whose client 0 sends its message times a factor."""
    (group,) = phase.groups

    def update(state, batch, keys):
        result = group.client.update(state, batch, keys)
        lie = jnp.where(batch.client_id == 0, factor, 1.0)
        return result._replace(message=trees.scale_floats(lie, result.message))

    return phase._replace(groups=(group._replace(client=group.client._replace(update=update)),))


def rounds(algorithm, changes, rule, trim=TRIM):
    """Returns ``factor -> (state before, state after)`` of a first round with a liar."""
    built = built_of(algorithm, *changes.items())
    (phase,) = built.phases
    phase = robust.aggregate(phase, {"rule": rule, "trim": trim})

    @jax.jit
    def step(state, data, factor):
        made = tiny.algorithm(built, lying(phase, factor))
        return made.round(state, data, built.run_key)[0]

    def run(factor):
        before = tiny.start(built, phase)
        return before, step(before, built.data, factor)

    return run


@pytest.mark.slow
@of_every_kind
@pytest.mark.parametrize("rule", ("median", "trimmed_mean", "clip"))
def test_the_round_steps_along_what_the_rule_makes_of_the_clients_updates(rule, algorithm, changes):
    built = built_of(algorithm, *changes.items())
    (phase,) = built.phases
    before, after = rounds(algorithm, changes, rule)(1.0)
    updates, messages, _ = tiny.first_updates(built, phase, before)
    of = {
        "median": lambda leaf: np.median(leaf, axis=0),
        "trimmed_mean": lambda leaf: scipy.stats.trim_mean(leaf, TRIM, axis=0),
        "clip": lambda leaf: np.tensordot(factors, leaf, 1) / 8,
    }
    # Updates are linear in messages; clients weigh the same.
    flat = np.concatenate([np.reshape(m, (8, -1)) for m in jax.tree.leaves(messages)], axis=1)
    lengths = np.linalg.norm(flat, axis=1)
    factors = np.minimum(1, np.median(lengths) / lengths)
    reduced = jax.tree.map(of[rule], updates)
    params, _ = tiny.server_step(built, phase, before, reduced)
    chex.assert_trees_all_close(after.params, params, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@of_every_kind
def test_rules_bound_what_one_liar_does(algorithm, changes):
    def distance(one, other):
        apart = jax.tree.map(lambda a, b: np.sum((a - b) ** 2.0), one.params, other.params)
        return float(np.sqrt(sum(jax.tree.leaves(apart))))

    undefended = rounds(algorithm, changes, "mean")
    (_, honest), (_, lied) = undefended(1.0), undefended(1e4)
    for rule in ("median", "clip"):
        _, defended = rounds(algorithm, changes, rule)(1e4)
        assert distance(defended, honest) < distance(lied, honest) / 100, rule
