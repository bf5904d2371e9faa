"""Three steps of every server optimizer against numbers worked out by hand, in plain Python."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zo_fl.engine import adaptive, server

GRADIENTS = (0.5, -1.0, 0.25)
LR, B1, B2 = 0.1, adaptive.B1, 0.99


def three_steps(optimizer):
    def path(params):
        state = optimizer.init(params)
        for gradient in GRADIENTS:
            updates, state = optimizer.update(jnp.float32(gradient), state, params)
            params = optax.apply_updates(params, updates)
            yield params

    return jax.jit(lambda params: [*path(params)])(jnp.float32(1.0))


# Without the rate: of momentum m = 0.5, -0.55, -0.245; m of the adaptive ones is a tenth of that.
STEPS = {
    "sgd": GRADIENTS,
    "momentum": (0.5, -0.55, -0.245),
    "normalized": (1.0, -1.0, 1.0),
}
SECOND_MOMENTS = {
    "adam": (0.0025, 0.012475, 0.01297525),
    # v - 0.01 g^2 sign(v - g^2): 0 < 0.25; 0.0025 < 1; 0.0125 < 0.0625
    "yogi": (0.0025, 0.0125, 0.013125),
    "adagrad": (0.25, 1.25, 1.3125),
}
for _name, _moments in SECOND_MOMENTS.items():
    _pairs = enumerate(zip((0.05, -0.055, -0.0245), _moments, strict=True), start=1)
    STEPS[_name] = tuple(
        m / (1 - B1**t) / math.sqrt(v if _name == "adagrad" else v / (1 - B2**t))
        for t, (m, v) in _pairs
    )


@pytest.mark.parametrize("name", server.OPTIMIZERS)
def test_three_steps_are_those_of_the_formula(name):
    expected = 1.0 - LR * np.cumsum(STEPS[name])
    np.testing.assert_allclose(three_steps(server.optimizer(name, LR, b2=B2)), expected, rtol=1e-5)


def test_adam_is_optax_s_adam_and_its_decay_is_decoupled():
    assert three_steps(server.optimizer("adam", 0.0)) == [1.0, 1.0, 1.0]
    ours = server.optimizer("adam", LR, b2=B2, weight_decay=0.3)
    theirs = optax.adamw(LR, B1, B2, adaptive.EPS, weight_decay=0.3)
    np.testing.assert_allclose(three_steps(ours), three_steps(theirs), rtol=1e-5)


def test_a_normalized_step_is_as_long_as_the_rate_over_all_arrays():
    gradient = {"a": jnp.array([1.0, 0.0]), "b": jnp.array([0.0, 2.0, -2.0])}
    normalized = server.optimizer("normalized", LR)
    step, _ = normalized.update(gradient, normalized.init(gradient), gradient)
    for name, leaf in gradient.items():
        np.testing.assert_allclose(step[name], -LR * leaf / 3, rtol=1e-5)
