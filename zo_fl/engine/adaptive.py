"""Adaptive steps of the server: Adam, Yogi, Adagrad, which differ in their second moment v.

    m <- b1 m + (1 - b1) g,    step m / (sqrt(v) + eps)

with m divided by 1 - b1^t and (not for adagrad, whose v is a sum) v by 1 - b2^t, as in PyTorch's
Adam and so in the ZOWarmUp author's code; the FedOpt paper leaves that out. optax's adagrad has no
b1, and its adam rounds otherwise.

Source: Reddi et al. 2021 (arXiv 2003.00295), Algorithm 2.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from zo_fl.engine.types import Array, Params

B1, EPS = 0.9, 1e-8


class Moments(NamedTuple):
    """First and second moments, shaped like the parameters, and ``i32[]`` steps taken."""

    mean: Params
    second: Params
    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]


def adam(b2: float) -> optax.GradientTransformation:
    """Returns the direction with ``v <- b2 v + (1 - b2) g^2``."""
    return _scale_by_moments(lambda v, g2: b2 * v + (1 - b2) * g2, b2)


def yogi(b2: float) -> optax.GradientTransformation:
    """Returns the direction with ``v <- v - (1 - b2) g^2 sign(v - g^2)``."""
    return _scale_by_moments(lambda v, g2: v - (1 - b2) * g2 * jnp.sign(v - g2), b2)


def adagrad(b2: float) -> optax.GradientTransformation:
    """Returns the direction with ``v <- v + g^2``; it has no ``b2``."""
    return _scale_by_moments(lambda v, g2: v + g2, None)


def _scale_by_moments(
    second_moment: Callable[[Array, Array], Array], b2: float | None
) -> optax.GradientTransformation:
    def init(params):
        zeros_like = optax.tree.zeros_like
        return Moments(zeros_like(params), zeros_like(params), jnp.int32(0))

    def update(updates, state, params=None):
        count = state.count + 1
        mean = jax.tree.map(lambda m, g: B1 * m + (1 - B1) * g, state.mean, updates)
        second = jax.tree.map(lambda v, g: second_moment(v, g * g), state.second, updates)
        m_scale = 1 / (1 - B1**count)
        v_scale = 1.0 if b2 is None else 1 / (1 - b2**count)
        step = jax.tree.map(lambda m, v: m_scale * m / (jnp.sqrt(v_scale * v) + EPS), mean, second)
        return step, Moments(mean, second, count)

    return optax.GradientTransformation(init, update)
