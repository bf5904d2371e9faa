"""Rules of aggregation against NumPy's and SciPy's, and what a round makes of them."""

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


@pytest.mark.parametrize("rule", MIDDLES)
def test_each_coordinate_is_numpy_s_of_those_who_have_weight(rule):
    middle = jax.jit(robust.RULES[rule](Reducer(), TRIM).middle)
    stacked = np.random.default_rng(0).normal(size=(11, 3, 2)).astype(np.float32)
    for clients in (1, 2, 5, 10, 11):
        counts = np.random.default_rng(clients).permutation(np.arange(11) < clients)
        given = np.where(counts[:, None, None], stacked, 1e9)
        found = middle({"w": given}, np.where(counts, 3.0, 0.0).astype("f4"))["w"]
        trimmed = scipy.stats.trim_mean(stacked[counts], TRIM, axis=0)
        expected = np.median(stacked[counts], axis=0) if rule == "median" else trimmed
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_clipping_leaves_nobody_longer_than_the_median():
    lengths, weights = np.linspace(1, 11, 11, dtype=np.float32), np.ones(11, np.float32)
    lengths[0], weights[1] = 1e3, 0
    factors = np.asarray(robust.clip_factors(jnp.array(lengths), jnp.array(weights)))
    median = np.median(lengths[weights > 0])
    np.testing.assert_allclose(factors * lengths, np.minimum(lengths, median), rtol=1e-6)


def test_sums_are_clipped_and_never_taken_coordinate_by_coordinate():
    of_sums = Reducer(is_sum=True, tolerant=True)
    for rule in robust.RULES.keys() - {"mean"}:
        found = robust.RULES[rule](of_sums, TRIM)
        assert found == of_sums._replace(factors=robust.clip_factors) and found.looks_at_all
    assert robust.RULES["mean"](of_sums, TRIM) is of_sums


def lying(phase):
    """Returns a phase whose client 0 sends its message times 1e4."""
    (group,) = phase.groups

    def update(state, batch, keys):
        result = group.client.update(state, batch, keys)
        lie = jnp.where(batch.client_id == 0, 1e4, 1.0)
        return result._replace(message=trees.scale_floats(lie, result.message))

    return phase._replace(groups=(group._replace(client=group.client._replace(update=update)),))


# Dense updates, scalars along directions of each client's own, shared ones.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "algorithm", "changes"),
    (
        ("median", "fedavg_all", {}),
        ("clip", "fedavg_all", {}),
        ("trimmed_mean", "zo", {}),
        ("clip", "zo", {"zo__seed_policy": "shared"}),
    ),
    ids=str,
)
def test_the_round_steps_along_what_the_rule_makes_of_a_liar_s_and_others_updates(
    rule, algorithm, changes
):
    built = tiny.build(algorithm, **changes)
    phase = lying(robust.aggregate(built.phases[0], {"rule": rule, "trim": TRIM}))
    before = tiny.start(built, phase)
    updates, messages, _ = tiny.first_updates(built, phase, before)
    # Updates are linear in messages; clients weigh the same.
    flat = np.concatenate([np.reshape(m, (8, -1)) for m in jax.tree.leaves(messages)], axis=1)
    lengths = np.linalg.norm(flat, axis=1)
    factors = np.minimum(1, np.median(lengths) / lengths)
    of = {
        "median": lambda leaf: np.median(leaf, axis=0),
        "trimmed_mean": lambda leaf: scipy.stats.trim_mean(leaf, TRIM, axis=0),
        "clip": lambda leaf: np.tensordot(factors, leaf, 1) / 8,
    }
    params, _ = tiny.server_step(built, phase, before, jax.tree.map(of[rule], updates))
    after, *_ = jax.jit(tiny.algorithm(built, phase).round)(before, built.data, built.run_key)
    chex.assert_trees_all_close(after.params, params, rtol=1e-4, atol=1e-6)
