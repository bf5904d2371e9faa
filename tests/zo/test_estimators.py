"""Estimators against what they estimate, and what their scalars are."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import tiny
from zo_fl import models
from zo_fl.engine import keys
from zo_fl.engine.image_task import classification
from zo_fl.zo import client, directions, estimators

WEIGHTS = np.float32([0.5, 0.25, 0.25, 0.0])  # the last example is padding


def make(distribution="rademacher", tau=1.0, eps=1e-2, num_directions=1, kind="two_point"):
    """Returns an estimator and its directions."""
    add = directions.create(distribution, tau)
    return estimators.ESTIMATORS[kind](add, eps=eps, num_directions=num_directions), add


def linear(gradient):
    """Losses whose weighted mean has the given gradient."""
    return lambda params: jnp.array([1.0, 1.0, 1.0, jnp.nan]) * jnp.vdot(gradient, params["w"])


def reconstruct(made, scalars, keys_, like):
    estimator, add = made
    zeros = jax.tree.map(jnp.zeros_like, like)
    return estimators.combine(add, estimator.coefficients(scalars), keys_, zeros)["w"]


def gradients(all_made, losses, params, count):
    """Returns many estimates of each estimator, of the same keys: they are drawn in one program."""

    def one(key):
        keys_ = jax.random.split(key, 1)
        estimates = [made[0].estimate(losses, WEIGHTS, params, keys_) for made in all_made]
        return [
            reconstruct(made, estimate.scalars, keys_, params)
            for made, estimate in zip(all_made, estimates, strict=True)
        ]

    split = jax.jit(jax.random.split, static_argnums=1)
    return jax.device_get(jax.jit(jax.vmap(one))(split(keys.run_key(11), count)))


@pytest.mark.slow
@pytest.mark.parametrize("distribution", ("rademacher", "gaussian", "sphere"))
def test_the_mean_is_tau_squared_times_the_gradient(distribution):
    gradient = np.float32([1.0, -2.0, 0.5, 3.0])
    cases = list(itertools.product((1.0, 0.5), sorted(estimators.ESTIMATORS)))
    all_made = [make(distribution, tau, kind=kind) for tau, kind in cases]
    found = gradients(all_made, linear(gradient), {"w": jnp.zeros(4)}, 40_000)
    for (tau, kind), got in zip(cases, found, strict=True):
        np.testing.assert_allclose(got.mean(0) / tau**2, gradient, atol=0.12, err_msg=kind)


def test_a_quadratic_s_curvature_cancels_in_the_antithetic_pair():
    hessian = np.float32([[2.0, 0.5], [0.5, 1.0]])
    quadratic = lambda p: jnp.full(4, 0.5) * (p["w"] @ hessian @ p["w"])  # noqa: E731
    params = {"w": jnp.array([1.0, -1.0])}
    (got,) = gradients([make(eps=0.3)], quadratic, params, 20_000)
    np.testing.assert_allclose(got.mean(0), hessian @ params["w"], atol=0.02)


@pytest.mark.parametrize(("distribution", "extra"), (("rademacher", 0), ("gaussian", 2)))
def test_the_second_moment_is_d_for_rademacher_and_d_plus_two_for_gaussian(distribution, extra):
    d = 16
    gradient = np.arange(1, d + 1, dtype=np.float32) / d
    (got,) = gradients([make(distribution)], linear(gradient), {"w": jnp.zeros(d)}, 40_000)
    ratio = np.mean(np.sum(got**2, axis=1)) / np.sum(gradient**2)
    np.testing.assert_allclose(ratio, d + extra, rtol=0.04)


def test_tau_only_rescales_eps_and_the_learning_rate():
    params = {"w": np.float32([0.3, -0.2, 0.7])}
    losses = lambda p: jnp.sin(p["w"].sum()) * jnp.ones(4) + p["w"][0] ** 2  # noqa: E731
    keys_ = jax.random.split(keys.run_key(5), 3)
    tau, eps, lr = 0.75, 1e-2, 0.1

    def updated(made, lr):
        scalars = made[0].estimate(losses, WEIGHTS, params, keys_).scalars
        return params["w"] - lr * reconstruct(made, scalars, keys_, params)

    @jax.jit
    def both():
        with_tau = updated(make(tau=tau, eps=eps, num_directions=3), lr)
        return with_tau, updated(make(tau=1.0, eps=tau * eps, num_directions=3), tau**2 * lr)

    with_tau, without = both()
    np.testing.assert_allclose(with_tau, without, rtol=1e-5)


@pytest.mark.parametrize(("precision", "eps"), (("float32", 1e-5), ("bfloat16", 1e-3)))
def test_a_scale_of_0_is_the_precision_s_best(precision, eps):
    task, block = tiny.build("zo").task, tiny.config(zo__precision=precision, zo__eps=0.0)["zo"]
    scalars = jnp.ones(3)
    chosen = client.make_probing(task, block, 0.1).estimator.coefficients(scalars)
    given = client.make_probing(task, block | {"eps": eps}, 0.1).estimator.coefficients(scalars)
    np.testing.assert_array_equal(chosen, given)


def test_scalars_are_bare_loss_differences():
    gradient, keys_ = np.float32([1.0, -2.0]), jax.random.split(keys.run_key(2), 4)
    (estimator, _), params = make(eps=0.1, tau=0.5, num_directions=4), {"w": np.ones(2, "f4")}
    estimate = jax.jit(lambda: estimator.estimate(linear(gradient), WEIGHTS, params, keys_))()
    # |<z, gradient>| is tau * 1 or tau * 3, times 2 eps.
    np.testing.assert_allclose(np.abs(estimate.scalars) / (0.2 * 0.5) % 2, 1.0, rtol=1e-4)
    np.testing.assert_allclose(estimate.loss, np.vdot(gradient, params["w"]), rtol=1e-5)


def test_a_probe_that_is_not_finite_is_dropped_and_the_rest_averaged():
    made, keys_ = make(num_directions=3), jax.random.split(keys.run_key(9), 3)
    like = {"w": jnp.zeros(40)}
    combine = jax.jit(lambda coefficients: estimators.combine(made[1], coefficients, keys_, like))
    rebuilt = jax.jit(lambda scalars: reconstruct(made, scalars, keys_, like))
    two = combine(np.float32([1.0, 0.0, 3.0]) / np.float32(2 * 1e-2 * 2))
    got = rebuilt(np.float32([1.0, np.nan, 3.0]))
    np.testing.assert_array_equal(got, two["w"])
    assert not np.any(rebuilt(np.full(3, np.inf, np.float32)))


def test_a_forward_difference_takes_one_pass_a_direction_and_one():
    (estimator, _), params = make(kind="forward", num_directions=4), {"w": jnp.ones(2)}
    calls = []
    losses = lambda p: (jax.debug.callback(calls.append, p["w"]), jnp.ones(4))[1]  # noqa: E731
    estimator.estimate(losses, WEIGHTS, params, jax.random.split(keys.run_key(1), 4))
    jax.effects_barrier()
    assert len(calls) == estimator.passes == 5
    assert sum(bool((w == params["w"]).all()) for w in calls) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "norm"),
    (("cnn", "group"), ("resnet18", "batch"), ("mlp", "none")),
)
def test_forward_mode_gives_the_derivative_that_back_propagation_gives(name, norm):
    module = models.create(name=name, norm=norm, num_classes=10, width=1 / 8)
    half = np.full(3, 0.5, np.float32)
    task = classification(module, (16, 16, 3), 10, half, half)
    params, model_state = jax.jit(task.init)(keys.run_key(0))
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    examples = {"image": images, "label": np.int32([1, 2, 3])}
    weights, mask = np.float32([0.5, 0.5, 0.0]), np.array([True, True, False])
    estimator, add = make(kind="jvp", num_directions=3)

    @jax.jit
    def both(params, keys_):
        def losses(params):
            return task.losses(params, model_state, examples, mask, False)[0]

        gradient = jax.grad(lambda p: jnp.sum(losses(p) * weights))(params)
        zeros = jax.tree.map(jnp.zeros_like, params)
        expected = [optax.tree.vdot(gradient, add(zeros, key, 1.0)) for key in keys_]
        return jnp.stack(expected), estimator.estimate(losses, weights, params, keys_).scalars

    expected, scalars = both(params, jax.random.split(keys.run_key(7), 3))
    np.testing.assert_allclose(scalars, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
