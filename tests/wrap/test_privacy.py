"""What an example can move is bounded, the noise is as large as said, and epsilon is its own."""

import functools
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from configs.sweeps.privacy import NOISE
from tests import tiny
from zo_fl import api
from zo_fl.engine.fields import ConfigError
from zo_fl.heads import ridge
from zo_fl.heads.closed_form import Moments
from zo_fl.host import privacy as accounting
from zo_fl.wrap import privacy
from zo_fl.wrap.privacy import Privacy
from zo_fl.zo import estimators

both = pytest.mark.parametrize("name", ("two_point", "forward"))


@functools.partial(jax.jit, static_argnames=("bound", "name", "count"))
def scalars_of(losses, bound, name, count=3):
    """The scalars of ``n`` examples whose losses are linear in the one parameter."""
    add = lambda params, key, scale: params + scale * jax.random.normal(key)  # noqa: E731
    estimator = estimators.ESTIMATORS[name](add, eps=0.1, num_directions=count, bound=bound)
    keys = jax.random.split(jax.random.key(0), count)
    weights = jnp.full(len(losses), 1 / len(losses))
    return estimator.estimate(lambda w: w * losses, weights, jnp.float32(0), keys).scalars


@both
def test_an_example_moves_scalars_by_the_bound_at_most(name):
    losses = np.random.default_rng(0).normal(size=20).astype(np.float32)
    for extreme in (1e6, -1e6, np.inf, np.nan):
        without = scalars_of(jnp.array([*losses, 0.0]), 0.01, name)
        moved = scalars_of(jnp.array([*losses, extreme]), 0.01, name) - without
        assert float(jnp.abs(moved).max()) <= 0.01 / 21 * 1.001
        assert float(jnp.linalg.norm(moved)) <= 0.01 * math.sqrt(3) / 21 * 1.001


@both
def test_a_bound_that_nothing_reaches_changes_nothing(name):
    losses = jnp.array(np.random.default_rng(0).normal(size=20), jnp.float32)
    bounded, free = scalars_of(losses, 100.0, name), scalars_of(losses, 0.0, name)
    np.testing.assert_allclose(bounded, free, rtol=1e-6)


def test_noise_on_scalars_is_as_large_as_said():
    weights = jnp.full(20, 0.05)
    draw = functools.partial(privacy.noisy_scalars, Privacy(0.1, 2.0), jnp.zeros(5), weights)
    noisy = jax.vmap(draw)(jax.random.split(jax.random.key(0), 2000))
    assert np.std(noisy) == pytest.approx(2.0 * 0.1 * math.sqrt(5) / 20, rel=0.03)


def sums_of(features, labels, bound):
    features = ridge.bounded_features(Privacy(bound, 0.0), jnp.float32(features))
    held = jax.nn.one_hot(labels, 3)
    return features.T @ features, features.T @ held, held.sum(0)


def test_an_example_moves_the_scaled_sums_by_the_root_of_three_at_most():
    generator = np.random.default_rng(0)
    features, labels = generator.normal(size=(30, 4)), generator.integers(0, 3, 30)
    features[0] *= 1e4
    whole, without = sums_of(features, labels, 2.0), sums_of(features[1:], labels[1:], 2.0)
    parts = [
        np.linalg.norm((a - b) / scale)
        for a, b, scale in zip(whole, without, (4.0, 2.0, 1.0), strict=True)
    ]
    assert max(parts) <= 1.0001 and np.linalg.norm(parts) <= math.sqrt(3) * 1.0001
    assert np.linalg.norm(parts) > 1.5  # the longest that there are reach it


def test_shares_of_the_noise_on_sums_add_up_to_all_of_it():
    zeros, cohort = Moments(jnp.zeros(300), jnp.zeros((10, 30)), jnp.zeros(300)), 25
    draw = functools.partial(ridge.noisy_sums, Privacy(3.0, 2.0), zeros, cohort)
    shares = jax.vmap(draw)(jax.random.split(jax.random.key(0), 20 * cohort))
    for part, scale in zip(shares, (9.0, 3.0, 1.0), strict=True):
        total = part.reshape(20, cohort, -1).sum(1)
        assert np.std(total) == pytest.approx(2.0 * math.sqrt(3) * scale, rel=0.05)


def delta_of(epsilon, noise):
    """Delta of one Gaussian release, in closed form (Balle and Wang 2018)."""
    a, b = 1 / (2 * noise), epsilon * noise
    return norm.cdf(a - b) - math.exp(epsilon) * norm.cdf(-a - b)


@pytest.mark.parametrize(("noise", "times"), ((1.0, 1), (6.3, 40)))
def test_epsilon_is_that_of_the_gaussian_mechanism(noise, times):
    found = accounting.epsilon(noise, times)
    # So many releases are one of less noise.
    assert delta_of(found, noise / math.sqrt(times)) == pytest.approx(1e-5, rel=0.02)


@pytest.mark.slow
def test_the_epsilons_of_the_sweep_are_those_of_its_noise():
    found = [accounting.epsilon(noise, 1) for noise in NOISE.values()]
    np.testing.assert_allclose(found, list(NOISE), rtol=0.02)


@pytest.mark.slow
def test_a_run_says_what_it_reveals_and_which_phases_promise_nothing(tmp_path):
    config = tiny.config("fedavg+zo", zo__bound=0.01, zo__noise=2.0)
    revealed = api.run(config, tmp_path, quiet=True)["privacy"]
    assert revealed["not_private"] == ["warmup"] and revealed["delta"] == 1e-5
    assert revealed["epsilon"] == {"zo": pytest.approx(accounting.epsilon(2.0, tiny.ROUNDS))}


def test_steps_over_several_epochs_count_several_times():
    fields = dict(zo__bound=1.0, zo__noise=1.0, fedkseed__batch_size=40)
    (once,) = tiny.build("fedkseed", **fields, fedkseed__local_steps=3).phases
    (again,) = tiny.build("fedkseed", **fields, fedkseed__local_steps=7).phases
    assert once.groups[0].release.times == 1 and again.groups[0].release.times == 3


@pytest.mark.parametrize(
    ("fields", "words"),
    (
        ({"zo__noise": 1.0}, "config.zo.bound=0.0 bounds nothing"),
        ({"zo__bound": 1.0, "zo__estimator": "jvp"}, "config.zo.bound=1: jvp bounds no"),
        (
            {"zo__bound": 1.0, "zo__noise": 1.0, "model__name": "cnn", "model__norm": "batch"},
            "config.zo.bn_policy='batch_sync': statistics of a batch reveal",
        ),
    ),
)
def test_noise_that_would_hide_nothing_is_refused(fields, words):
    with pytest.raises(ConfigError, match=words):
        tiny.build("zo", **fields)


def test_without_the_accountant_noise_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    tiny.build("zo", zo__bound=1.0)
    with pytest.raises(ConfigError, match="pip install 'zo_fl"):
        tiny.build("zo", zo__bound=1.0, zo__noise=1.0)
