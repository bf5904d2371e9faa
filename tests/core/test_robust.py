"""Rules of aggregation against NumPy's and SciPy's."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from zo_fl.engine import robust
from zo_fl.engine.robust import Robust


def updates(clients=11, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(clients, 3, 2)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("clients", (1, 2, 5, 10, 11))
@pytest.mark.parametrize("rule", ("median", "trimmed_mean"))
def test_each_coordinate_by_itself(rule, clients):
    stacked = updates(clients)
    found = Robust(rule=rule, trim=0.2).middle({"w": jnp.array(stacked)}, jnp.ones(clients))["w"]
    expected = (
        np.median(stacked, axis=0)
        if rule == "median"
        else scipy.stats.trim_mean(stacked, 0.2, axis=0)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ("median", "trimmed_mean"))
def test_who_has_no_weight_has_no_say(rule):
    stacked, weights = updates(), np.arange(11) % 3
    stacked[weights == 0] = 1e9
    found = Robust(rule=rule, trim=0.2).middle(jnp.array(stacked), jnp.array(weights, jnp.float32))
    alone = stacked[weights > 0]
    expected = Robust(rule=rule, trim=0.2).middle(jnp.array(alone), jnp.ones(len(alone)))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("rule", ("median", "trimmed_mean"))
def test_a_minority_cannot_leave_the_range_of_the_others(rule):
    stacked = updates(10)
    stacked[:3] *= 1e6
    found = np.asarray(Robust(rule=rule, trim=0.3).middle(jnp.array(stacked), jnp.ones(10)))
    assert (found <= stacked[3:].max(0)).all() and (found >= stacked[3:].min(0)).all()


def test_clipping_leaves_nobody_longer_than_the_median():
    stacked, weights = updates(), np.ones(11, np.float32)
    stacked[0], weights[1] = 1e3, 0
    lengths = np.linalg.norm(stacked.reshape(11, -1), axis=1)
    np.testing.assert_allclose(robust.norms(jnp.array(stacked)), lengths, rtol=1e-6)
    factors = np.asarray(robust.clip_factors(jnp.array(lengths), jnp.array(weights)))
    median = np.median(lengths[weights > 0])
    np.testing.assert_allclose(factors * lengths, np.minimum(lengths, median), rtol=1e-6)


def test_a_bound_shortens_what_is_longer_and_leaves_whole_numbers():
    sent = {"w": jnp.array([3.0, 4.0]), "count": jnp.array([7])}
    bounded = Robust(max_norm=1.0).bounded(sent)
    np.testing.assert_allclose(bounded["w"], [0.6, 0.8], rtol=1e-6)
    assert bounded["count"] == 7
    np.testing.assert_array_equal(Robust(max_norm=6.0).bounded(sent)["w"], sent["w"])
    assert Robust().bounded(sent) is sent
