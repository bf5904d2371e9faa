"""What an example can move is bounded, the noise is as large as said, and epsilon is its own."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.sweeps.privacy import NOISE
from tests import tiny
from zo_fl import api
from zo_fl.engine.fields import ConfigError
from zo_fl.heads import ridge
from zo_fl.heads.closed_form import Moments
from zo_fl.host import privacy as accounting
from zo_fl.host.schedule import make_schedule
from zo_fl.wrap import privacy
from zo_fl.wrap.privacy import Privacy
from zo_fl.zo import estimators

SCALARS = {"zo__bound": 0.01, "zo__noise": 2.0}
SUMS = {
    "ridge__bound": 1.0,
    "ridge__noise": 3.0,
    "ridge__penalties": (0.1,),
    "ridge__calibrate": False,
}


@functools.partial(jax.jit, static_argnames=("bound", "name", "count"))
def scalars_of(losses, bound, name, count=3):
    """The scalars of ``n`` examples whose losses are linear in the one parameter."""
    add = lambda params, key, scale: params + scale * jax.random.normal(key)  # noqa: E731
    estimator = estimators.ESTIMATORS[name](add, eps=0.1, num_directions=count, bound=bound)
    keys = jax.random.split(jax.random.key(0), count)
    weights = jnp.full(len(losses), 1 / len(losses))
    return estimator.estimate(lambda w: w * losses, weights, jnp.float32(0), keys).scalars


# All but jvp, which bounds no single examples and says so.
@pytest.mark.parametrize("name", sorted(estimators.ESTIMATORS.keys() - {"jvp"}))
def test_an_example_moves_scalars_by_the_bound_at_most(name):
    losses = np.random.default_rng(0).normal(size=20).astype(np.float32)
    for extreme in (1e6, -1e6, np.inf, np.nan):
        without = scalars_of(jnp.array([*losses, 0.0]), 0.01, name)
        moved = scalars_of(jnp.array([*losses, extreme]), 0.01, name) - without
        assert float(jnp.abs(moved).max()) <= 0.01 / 21 * 1.001
        assert float(jnp.linalg.norm(moved)) <= 0.01 * math.sqrt(3) / 21 * 1.001
    free, bounded = (scalars_of(jnp.array([*losses, 0.0]), bound, name) for bound in (0.0, 100.0))
    np.testing.assert_allclose(bounded, free, rtol=1e-6)  # nothing reaches that


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


def test_epsilon_is_that_of_dp_accounting_and_0_where_delta_covers_all():
    """``PLDAccountant`` of dp-accounting 0.6; the last by the closed form in 50 digits."""
    known = {1.0: 4.3771781, 6.3 / math.sqrt(40): 4.3969394, 3.731: 0.9998916, 0.02: 1462.285016}
    found = [accounting.epsilon(1 / noise) for noise in known]
    np.testing.assert_allclose(found, list(known.values()), rtol=1e-7)
    assert accounting.epsilon(1e-6) == 0.0
    assert accounting.epsilon(1e10) == pytest.approx(5e19, rel=1e-6)


def test_the_epsilons_of_the_sweep_are_those_of_its_noise():
    found = [accounting.epsilon(1 / noise) for noise in NOISE.values()]
    np.testing.assert_allclose(found, list(NOISE), rtol=0.02)


@pytest.mark.slow
def test_a_run_says_what_it_reveals_and_which_phases_promise_nothing(tmp_path):
    config = tiny.config("fedavg+zo", zo__bound=0.01, zo__noise=2.0)
    revealed = api.run(config, tmp_path, quiet=True)["privacy"]
    assert revealed["not_private"] == ["warmup"] and revealed["delta"] == 1e-5
    expected = pytest.approx(accounting.epsilon(math.sqrt(tiny.ROUNDS) / 2))
    assert revealed["epsilon"] == {"zo": expected} and revealed["epsilon_in_all"] == expected
    assert not revealed["assumes"], "each message has all of its noise"


def test_phases_of_one_name_and_of_several_compose():
    built = tiny.build("zo+ridge+zo", **SCALARS, **SUMS)
    model = jax.eval_shape(built.task.init, built.run_key)
    planned = make_schedule(built.phases, *model, built.data, built.validation)
    revealed = accounting.account(planned.phases, planned.end)
    scalars, sums = 2 * tiny.ROUNDS / 2.0**2, 1 / 3.0**2
    assert revealed["epsilon"] == {
        "zo": pytest.approx(accounting.epsilon(math.sqrt(scalars))),
        "ridge": pytest.approx(accounting.epsilon(math.sqrt(sums))),
    }
    expected = accounting.epsilon(math.sqrt(scalars + sums))
    assert revealed["epsilon_in_all"] == pytest.approx(expected)
    assert revealed["assumes"] == [accounting.SECURE_AGGREGATION]


def test_steps_over_several_epochs_count_several_times():
    fields = dict(zo__bound=1.0, zo__noise=1.0, fedkseed__batch_size=40)
    (once,) = tiny.build("fedkseed", **fields, fedkseed__local_steps=3).phases
    (again,) = tiny.build("fedkseed", **fields, fedkseed__local_steps=7).phases
    assert once.groups[0].release.times == 1 and again.groups[0].release.times == 3


@pytest.mark.parametrize(
    ("fields", "words"),
    (
        ({"zo__noise": 1.0}, "config.zo.bound='none' bounds nothing"),
        (SCALARS | {"zo__noise": 1e-9}, "config.zo.noise=1e-09 hides nothing; allowed: 0, or"),
        ({"zo__bound": 1.0, "zo__estimator": "jvp"}, "config.zo.bound=1: jvp bounds no"),
        ({**SUMS, "ridge__encoding": "int8"}, "config.ridge.encoding='int8' rounds each"),
        (
            {**SUMS, "ridge__num_rounds": 2, "ridge__cohort_size": 2},
            "config.ridge.num_rounds=2 leaves out the noise",
        ),
        ({**SUMS, "robust__rule": "clip"}, "config.robust.rule='clip': a message of"),
        ({**SUMS, "faults__dropout": 0.1}, "config.faults.dropout=0.1: a message"),
        (
            {"zo__bound": 1.0, "zo__noise": 1.0, "model__name": "cnn", "model__norm": "batch"},
            "config.zo.bn_policy='batch_sync': statistics of a batch reveal",
        ),
    ),
)
def test_noise_that_would_hide_nothing_is_refused(fields, words):
    with pytest.raises(ConfigError, match=words):
        tiny.build("ridge" if "ridge__noise" in fields else "zo", **fields)


def test_robust_rules_and_faults_go_with_scalars_that_have_all_of_their_noise():
    tiny.build("zo", **SCALARS, robust__rule="clip", faults__dropout=0.5)


def test_a_feature_that_is_not_finite_counts_as_nothing():
    seen = jnp.array([[3.0, 4.0], [jnp.inf, 0.0], [jnp.nan, 1.0], [0.3, 0.4]])
    kept = ridge.bounded_features(Privacy(1.0, 1.0), seen)
    np.testing.assert_allclose(kept, [[0.6, 0.8], [0, 0], [0, 0], [0.3, 0.4]], rtol=1e-6)
