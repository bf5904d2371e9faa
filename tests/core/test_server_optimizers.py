"""Three steps of every server optimizer against numbers worked out by hand, in plain Python."""

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zo_fl.engine import server_optimizers

GRADIENTS = (0.5, -1.0, 0.25)
LR, B1, B2, EPS = 0.1, 0.9, 0.99, 1e-3


def create(name, bias_correction=False, initial_accumulator=0.0, lr=LR):
    return server_optimizers.create(
        name=name,
        lr=lr,
        b1=B1,
        b2=B2,
        eps=EPS,
        initial_accumulator=initial_accumulator,
        bias_correction=bias_correction,
    )


def three_steps(optimizer):
    params = jnp.array([1.0])
    state, path = optimizer.init(params), []
    for gradient in GRADIENTS:
        updates, state = optimizer.update(jnp.array([gradient]), state, params)
        params = optax.apply_updates(params, updates)
        path.append(float(params[0]))
    return path


def test_sgd():
    np.testing.assert_allclose(three_steps(create("sgd")), (0.95, 1.05, 1.025), rtol=1e-6)


def test_momentum():
    # m = 0.5, -0.55, -0.245
    np.testing.assert_allclose(three_steps(create("momentum")), (0.95, 1.005, 1.0295), rtol=1e-6)


# m = 0.05, -0.055, -0.0245 for all three; v worked out line by line.
SECOND_MOMENTS = {
    "adam": (0.0025, 0.012475, 0.01297525),
    # v - 0.01 g^2 sign(v - g^2): 0 < 0.25; 0.0025 < 1; 0.0125 < 0.0625
    "yogi": (0.0025, 0.0125, 0.013125),
    "adagrad": (0.25, 1.25, 1.3125),
}


@pytest.mark.parametrize("name", SECOND_MOMENTS)
def test_adaptive_without_bias_correction(name):
    w, expected = 1.0, []
    for m, v in zip((0.05, -0.055, -0.0245), SECOND_MOMENTS[name], strict=True):
        w -= LR * m / (math.sqrt(v) + EPS)
        expected.append(w)
    np.testing.assert_allclose(three_steps(create(name)), expected, rtol=1e-5)


@pytest.mark.parametrize("name", SECOND_MOMENTS)
def test_adaptive_with_bias_correction(name):
    w, expected = 1.0, []
    moments = zip((0.05, -0.055, -0.0245), SECOND_MOMENTS[name], strict=True)
    for t, (m, v) in enumerate(moments, start=1):
        v_hat = v if name == "adagrad" else v / (1 - B2**t)
        w -= LR * m / (1 - B1**t) / (math.sqrt(v_hat) + EPS)
        expected.append(w)
    np.testing.assert_allclose(three_steps(create(name, True)), expected, rtol=1e-5)


def test_yogi_shrinks_its_second_moment_when_gradients_shrink():
    path = three_steps(create("yogi", initial_accumulator=4.0))
    # v = 4 - 0.01 * 0.25, then - 0.01 * 1, then - 0.01 * 0.0625
    w, expected = 1.0, []
    for m, v in zip((0.05, -0.055, -0.0245), (3.9975, 3.9875, 3.986875), strict=True):
        w -= LR * m / (math.sqrt(v) + EPS)
        expected.append(w)
    np.testing.assert_allclose(path, expected, rtol=1e-6)


def test_adam_with_bias_correction_is_optax_s_adam():
    np.testing.assert_allclose(
        three_steps(create("adam", True)), three_steps(optax.adam(LR, B1, B2, EPS)), rtol=1e-5
    )


def test_a_learning_rate_of_zero_keeps_the_parameters():
    for name in server_optimizers.OPTIMIZERS:
        assert three_steps(create(name, lr=0.0)) == [1.0, 1.0, 1.0]


@pytest.mark.slow
def test_a_scaled_step_has_the_length_that_its_name_says():
    params = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.6, -0.8, 0.0])}
    gradient = {"a": jnp.array([1.0, 0.0]), "b": jnp.array([0.0, 2.0, -2.0])}

    def step(**given):
        constants = dict(b1=B1, b2=B2, eps=EPS, initial_accumulator=0.0, bias_correction=False)
        optimizer = server_optimizers.create(name="sgd", lr=LR, **constants, **given)
        return optimizer.update(gradient, optimizer.init(params), params)[0]

    plain, norm, trust = step(scale="none"), step(scale="norm"), step(scale="trust")
    for name in params:
        np.testing.assert_allclose(plain[name], -LR * gradient[name], rtol=1e-6)
        np.testing.assert_allclose(norm[name], -LR * gradient[name] / 3, rtol=1e-5)
        size = np.linalg.norm(params[name]) / np.linalg.norm(gradient[name])
        np.testing.assert_allclose(trust[name], -LR * size * gradient[name], rtol=1e-5)
