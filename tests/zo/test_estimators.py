"""Estimators against what they estimate, and what their scalars are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import tiny
from zo_fl import config as configs
from zo_fl import models
from zo_fl.engine import keys
from zo_fl.engine.algorithm import Problem
from zo_fl.engine.image_task import classification
from zo_fl.zo import client, directions, estimators

WEIGHTS = np.float32([0.5, 0.25, 0.25, 0.0])  # the last example is padding
COUNT = 3


def make(kind="two_point", tau=1.0, eps=0.1):
    """Returns an estimator and its directions."""
    add = directions.create("gaussian", tau)
    return estimators.ESTIMATORS[kind](add, eps=eps, num_directions=COUNT), add


def keys_of(seed):
    return jax.vmap(jax.random.fold_in, (None, 0))(keys.run_key(seed), np.arange(COUNT))


def test_of_a_quadratic_scalars_are_differences_whose_curvature_cancels_in_an_antithetic_pair():
    start, eps = np.float32([1.0, -1.0, 0.5]), 0.3
    hessian = np.float32([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 0.7]])
    add = make()[1]

    def losses(params):
        values = jnp.array([1.0, 1.0, 1.0, jnp.nan])
        return values * 0.5 * (params["w"] @ hessian @ params["w"])

    @jax.jit
    def all_estimates():
        params, keys_ = {"w": jnp.array(start)}, keys_of(11)
        zeros = {"w": jnp.zeros(3)}
        z = jnp.stack([add(zeros, key, 1.0)["w"] for key in keys_])
        found = {}
        for kind in estimators.ESTIMATORS:
            estimator, _ = make(kind, eps=eps)
            scalars, loss = estimator.estimate(losses, WEIGHTS, params, keys_)
            coefficients = estimator.coefficients(scalars)
            found[kind] = scalars, loss, estimators.combine(add, coefficients, keys_, zeros)["w"]
        return z, found

    z, found = jax.device_get(all_estimates())
    slopes, curvatures = z @ hessian @ start, np.einsum("si,ij,sj->s", z, hessian, z)
    expected = {
        "two_point": (2 * eps * slopes, 2 * eps),
        "forward": (eps * slopes + eps**2 / 2 * curvatures, eps),
        "jvp": (slopes, 1.0),
    }
    assert found.keys() == expected.keys()
    for kind, (scalars, step) in expected.items():
        np.testing.assert_allclose(found[kind][0], scalars, rtol=1e-4, atol=1e-5, err_msg=kind)
        gradient = scalars / step / COUNT @ z
        np.testing.assert_allclose(found[kind][2], gradient, rtol=1e-4, atol=1e-4, err_msg=kind)
    value = start @ hessian @ start / 2
    np.testing.assert_allclose([found["forward"][1], found["jvp"][1]], value, rtol=1e-5)
    mean = value + eps**2 / 2 * curvatures.mean()
    np.testing.assert_allclose(found["two_point"][1], mean, rtol=1e-5)


def test_tau_only_rescales_eps_and_the_learning_rate():
    params = {"w": np.float32([0.3, -0.2, 0.7])}
    losses = lambda p: jnp.sin(p["w"].sum()) * jnp.ones(4) + p["w"][0] ** 2  # noqa: E731
    tau, eps, lr = 0.75, 1e-2, 0.1

    def updated(estimator, add, lr):
        keys_ = keys_of(5)
        scalars = estimator.estimate(losses, WEIGHTS, params, keys_).scalars
        return estimators.combine(add, -lr * estimator.coefficients(scalars), keys_, params)["w"]

    @jax.jit
    def both():
        with_tau = updated(*make(tau=tau, eps=eps), lr)
        return with_tau, updated(*make(tau=1.0, eps=tau * eps), tau**2 * lr)

    with_tau, without = both()
    np.testing.assert_allclose(with_tau, without, rtol=1e-5)


def test_a_scale_of_0_is_the_precision_s_best():
    built = tiny.build("zo")
    block = configs.plain(tiny.config(zo__precision="bfloat16", zo__eps="auto"))["zo"]
    problem = Problem(built.task, lambda width: built.task, built.federation.clients)
    scalars = jnp.ones(3)
    chosen, given = (
        client.make_probing(problem, block | {"eps": eps}, 0.1).estimator.coefficients(scalars)
        for eps in (0.0, 1e-3)
    )
    np.testing.assert_array_equal(chosen, given)


def test_a_probe_that_is_not_finite_is_dropped_and_the_rest_averaged():
    coefficients = make(eps=0.01)[0].coefficients
    got = coefficients(jnp.array([1.0, jnp.nan, 3.0]))
    np.testing.assert_allclose(got, np.float32([1.0, 0.0, 3.0]) / (0.02 * 2), rtol=1e-6)
    assert not np.any(coefficients(jnp.full(3, jnp.inf)))


def test_a_forward_difference_takes_one_pass_a_direction_and_one():
    (estimator, _), params = make("forward"), {"w": jnp.ones(2)}
    calls = []
    losses = lambda p: (jax.debug.callback(calls.append, p["w"]), jnp.ones(4))[1]  # noqa: E731
    estimator.estimate(losses, WEIGHTS, params, keys_of(1))
    jax.effects_barrier()
    assert len(calls) == estimator.passes == COUNT + 1
    assert sum(bool((w == params["w"]).all()) for w in calls) == 1


@pytest.mark.slow
def test_forward_mode_gives_the_derivative_that_back_propagation_gives():
    module = models.create(name="cnn", norm="group", num_classes=10, width=1 / 8)
    half = np.full(3, 0.5, np.float32)
    task = classification(module, (8, 8, 3), 10, half, half)
    params, model_state = jax.jit(task.init)(keys.run_key(0))
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    examples = {"image": images, "label": np.int32([1, 2, 3])}
    weights, mask = np.float32([0.5, 0.5, 0.0]), np.array([True, True, False])
    estimator, add = make("jvp")

    @jax.jit
    def both(params, keys_):
        def losses(params):
            return task.losses(params, model_state, examples, mask, False)[0]

        gradient = jax.grad(lambda p: jnp.sum(losses(p) * weights))(params)
        zeros = jax.tree.map(jnp.zeros_like, params)
        slope = lambda key: optax.tree.vdot(gradient, add(zeros, key, 1.0))  # noqa: E731
        return jax.lax.map(slope, keys_), estimator.estimate(losses, weights, params, keys_).scalars

    expected, scalars = both(params, keys_of(7))
    np.testing.assert_allclose(scalars, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
