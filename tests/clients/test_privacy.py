"""What an example can move is bounded, the noise is as large as said, and epsilon is its own."""

import functools
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from tests import tiny
from zo_fl import api as train
from zo_fl import config
from zo_fl.engine.errors import ConfigError
from zo_fl.heads import closed_form
from zo_fl.heads.closed_form import Moments
from zo_fl.host import privacy as accounting
from zo_fl.wrap import privacy
from zo_fl.wrap.privacy import Privacy
from zo_fl.zo import estimators

RIDGE = dict(ridge__penalties=(0.1,), ridge__calibrate=False)


@functools.partial(jax.jit, static_argnames=("bound", "name", "count"))
def scalars_of(losses, bound, name, count=3):
    """The scalars of ``n`` examples whose losses are linear in the one parameter."""
    add = lambda params, key, scale: params + scale * jax.random.normal(key)  # noqa: E731
    estimator = estimators.create(name, add, eps=0.1, num_directions=count, bound=bound)
    keys = jax.random.split(jax.random.key(0), count)
    weights = jnp.full(len(losses), 1 / len(losses))
    return estimator.estimate(lambda w: w * losses, weights, jnp.float32(0), keys).scalars


@pytest.mark.parametrize("name", ("two_point", "forward"))
def test_an_example_moves_scalars_by_the_bound_at_most(name):
    losses = np.random.default_rng(0).normal(size=20).astype(np.float32)
    for extreme in (1e6, -1e6, np.inf, np.nan):
        without = scalars_of(jnp.array([*losses, 0.0]), 0.01, name)
        moved = scalars_of(jnp.array([*losses, extreme]), 0.01, name) - without
        assert float(jnp.abs(moved).max()) <= 0.01 / 21 * 1.001
        assert float(jnp.linalg.norm(moved)) <= 0.01 * math.sqrt(3) / 21 * 1.001


@pytest.mark.parametrize("name", ("two_point", "forward"))
def test_a_bound_that_nothing_reaches_changes_nothing(name):
    losses = jnp.array(np.random.default_rng(0).normal(size=20), jnp.float32)
    np.testing.assert_allclose(
        scalars_of(losses, 100.0, name), scalars_of(losses, 0.0, name), rtol=1e-6
    )


def test_noise_on_scalars_is_as_large_as_said():
    scalars, weights = jnp.zeros(5), jnp.array([0.05] * 20)
    noisy = [
        privacy.noisy_scalars(Privacy(0.1, 2.0), scalars, weights, jax.random.key(i))
        for i in range(400)
    ]
    assert np.std(noisy) == pytest.approx(2.0 * 0.1 * math.sqrt(5) / 20, rel=0.06)


def moments_of(features, labels, bound):
    features = privacy.bounded_features(Privacy(bound, 0.0), jnp.array(features))
    held = jax.nn.one_hot(labels, 3)
    gram = closed_form.packed_product(features)
    return Moments(gram, features.T @ held, held.sum(0))


@pytest.mark.slow
def test_an_example_moves_the_scaled_sums_by_the_root_of_three_at_most():
    generator = np.random.default_rng(0)
    features, labels = generator.normal(size=(30, 4)), generator.integers(0, 3, 30)
    features[0] *= 1e4
    whole, without = moments_of(features, labels, 2.0), moments_of(features[1:], labels[1:], 2.0)
    parts = [
        np.linalg.norm((a - b) / scale)
        for a, b, scale in zip(whole, without, (4.0, 2.0, 1.0), strict=True)
    ]
    assert max(parts) <= 1.0001 and np.linalg.norm(parts) <= math.sqrt(3) * 1.0001
    assert np.linalg.norm(parts) > 1.5  # the longest that there are reach it


@pytest.mark.slow
def test_shares_of_the_noise_add_up_to_all_of_it():
    zeros, cohort = Moments(jnp.zeros(300), jnp.zeros((10, 3)), jnp.zeros(3)), 25
    total = [
        sum(
            privacy.noisy_moments(
                Privacy(3.0, 2.0), zeros, cohort, 2, jax.random.key(100 * trial + client)
            ).gram
            for client in range(cohort)
        )
        for trial in range(4)
    ]
    assert np.std(total) == pytest.approx(2.0 * math.sqrt(3) * 2 * 9, rel=0.08)


@pytest.mark.slow
def test_noisy_sums_become_those_that_examples_can_have():
    generator = np.random.default_rng(0)
    sums = moments_of(generator.normal(size=(30, 4)), generator.integers(0, 3, 30), 0.0)
    near = closed_form.semidefinite(sums)
    np.testing.assert_allclose(near.gram, sums.gram, rtol=1e-4, atol=1e-4)
    noisy = sums._replace(gram=sums.gram + 40 * generator.normal(size=10).astype(np.float32))
    variances = [
        np.linalg.eigvalsh(closed_form.mean_and_covariance(each)[1]).min()
        for each in (noisy, closed_form.semidefinite(noisy))
    ]
    assert variances[0] < -0.1 and variances[1] > -1e-5


def delta_of(epsilon, noise):
    """Delta of one Gaussian release, in closed form (Balle and Wang 2018)."""
    a, b = 1 / (2 * noise), epsilon * noise
    return norm.cdf(a - b) - math.exp(epsilon) * norm.cdf(-a - b)


@pytest.mark.parametrize(("noise", "times"), ((1.0, 1), (2.0, 4), (6.3, 40)))
def test_epsilon_is_that_of_the_gaussian_mechanism(noise, times):
    found = accounting.epsilon(noise, times)
    # So many releases are one of less noise.
    assert delta_of(found, noise / math.sqrt(times)) == pytest.approx(1e-5, rel=0.02)


@pytest.mark.slow
def test_a_run_says_what_it_reveals_and_which_phases_promise_nothing(tmp_path):
    changed = tiny.config("fedavg+ridge+zo", ridge__bound=10.0, ridge__noise=1.0, **RIDGE)
    changed["zo"] |= {"bound": 0.01, "noise": 2.0}
    revealed = train.run(changed, tmp_path, quiet=True)["privacy"]
    assert revealed["not_private"] == ["warmup"] and revealed["delta"] == 1e-5
    assert revealed["epsilon"]["ridge"] == pytest.approx(accounting.epsilon(1.0, 1))
    assert revealed["epsilon"]["zo"] == pytest.approx(accounting.epsilon(2.0, tiny.ROUNDS))


def test_steps_over_several_epochs_count_several_times():
    fields = dict(fedkseed__bound=1.0, fedkseed__noise=1.0, fedkseed__batch_size=40)
    (once,) = tiny.build("fedkseed", **fields, fedkseed__local_steps=3).phases
    (again,) = tiny.build("fedkseed", **fields, fedkseed__local_steps=7).phases
    assert once.release.times == 1 and again.release.times > 1


@pytest.mark.parametrize(
    ("algorithm", "fields", "words"),
    (
        ("zo", {"zo__noise": 1.0}, "config.zo.bound=0.0 bounds nothing"),
        ("zo", {"zo__bound": 1.0, "zo__estimator": "jvp"}, "config.zo.bound=1: jvp bounds no"),
        ("zo", {"zo__bound": 1.0, "zo__noise": 1.0, "zo__loss": "wsm"}, "config.zo.loss='wsm'"),
        (
            "zo",
            {"zo__bound": 1.0, "zo__noise": 1.0, "model__name": "cnn", "model__norm": "batch"},
            "config.zo.bn_policy='batch_sync': statistics of a batch reveal",
        ),
        ("ridge", {"ridge__bound": 1.0, "ridge__noise": 1.0}, "config.ridge.penalties="),
        (
            "ridge",
            RIDGE | {"ridge__bound": 1.0, "ridge__noise": 1.0, "ridge__calibrate": True},
            "config.ridge.calibrate=True",
        ),
        (
            "ridge",
            RIDGE | {"ridge__bound": 1.0, "ridge__noise": 1.0, "ridge__sketch": 8},
            "config.ridge.basis='principal'",
        ),
    ),
)
def test_noise_that_would_hide_nothing_is_refused(algorithm, fields, words):
    with pytest.raises(ConfigError, match=words):
        tiny.build(algorithm, **fields)


def test_without_the_accountant_noise_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    tiny.build("zo", zo__bound=1.0)
    with pytest.raises(ConfigError, match="pip install 'zo_fl"):
        tiny.build("zo", zo__bound=1.0, zo__noise=1.0)


@pytest.mark.slow
def test_the_sweep_has_the_epsilons_that_it_says():
    sweep = config.call(config.find("privacy", "sweep", "sweeps"), "get_sweep", config.default())
    points = [point for point in sweep.points if point.column.startswith("epsilon")]
    assert len(points) == 12
    for point in points[1::3]:
        (noise,) = [value for name, value in point.overrides.items() if name.endswith("noise")]
        times = 1 if "ridge.noise" in point.overrides else config.default().zo.num_rounds
        said = float(point.column.removeprefix("epsilon "))
        assert accounting.epsilon(noise, times) == pytest.approx(said, rel=0.02)
