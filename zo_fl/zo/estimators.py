"""Zeroth-order estimators: pairs of functions around the scalars that travel.

``estimate`` runs at the client and turns losses at perturbed weights into ``f32[S]`` scalars;
``reconstruct`` runs anywhere and turns scalars and a key into a gradient estimate. A new estimator
is one function that returns such a pair, and its name in ``ESTIMATORS``.

Losses come *per example*: differences are taken example by example before they are averaged. The
two losses of a pair agree to five or six digits (eps * tau = 7.5e-5), and a difference of two
rounded means would be mostly rounding.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zo_fl.errors import ConfigError
from zo_fl.types import Array, Params
from zo_fl.zo.directions import AddDirection


class Estimate(NamedTuple):
    """What a client learns from its probes.

    Attributes:
      scalars: ``f32[S]``, what is uploaded.
      loss: ``f32[]`` mean loss over the probes that are finite, NaN if none is.
    """

    scalars: Array
    loss: Array


class Estimator(NamedTuple):
    """A zeroth-order gradient estimator.

    Attributes:
      estimate: ``(losses, weights, params, key) -> Estimate`` with ``losses: params -> f32[n]`` and
        ``weights: f32[n]`` summing to one (0 for padding).
      reconstruct: ``(scalars f32[S], key, like) -> tree like like``: the gradient estimate.
      passes: forward passes over the client's examples that one ``estimate`` takes.
    """

    estimate: Callable[..., Estimate]
    reconstruct: Callable[[Array, Array, Params], Params]
    passes: int


def two_point(add_direction: AddDirection, *, eps: float, num_directions: int) -> Estimator:
    """Returns the antithetic two-point estimator (SPSA averaged over S directions).

        scalar_m = F(w + eps z_m) - F(w - eps z_m)
        gradient = 1/S sum_m scalar_m / (2 eps) z_m,      z_m = z(fold_in(key, m))

    The scalar is the bare loss difference, as the paper uploads it. A probe that is not finite is
    dropped and the mean taken over the others.

    Args:
      add_direction: from ``directions.create``.
      eps: perturbation scale, > 0.
      num_directions: S >= 1.

    Raises:
      ConfigError: eps or num_directions out of range.

    Source: ZOWarmUp, Algorithm 1 and section 3.2; Spall 1992.
    """
    _check(eps, num_directions)

    def estimate(losses, weights, params, key):
        # One pass at a time, in one loop over directions and signs: one perturbed copy of the
        # weights exists at once, and the model is compiled once.
        def one_pass(direction, sign):
            direction_key = jax.random.fold_in(key, direction)
            return losses(add_direction(params, direction_key, sign * eps))

        directions = jnp.repeat(jnp.arange(num_directions), 2)
        signs = jnp.tile(jnp.array([1.0, -1.0]), num_directions)
        passes = jax.lax.map(lambda item: one_pass(*item), (directions, signs))
        plus, minus = passes[0::2], passes[1::2]
        scalars = jax.vmap(_mean, in_axes=(0, None))(plus - minus, weights)
        means = jax.vmap(_mean, in_axes=(0, None))((plus + minus) / 2, weights)
        return Estimate(scalars, jnp.mean(means, where=jnp.isfinite(means)))

    def reconstruct(scalars, key, like):
        return combine(add_direction, finite_mean_coefficients(scalars, 2 * eps), key, like)

    return Estimator(estimate, reconstruct, passes=2 * num_directions)


def finite_mean_coefficients(scalars: Array, step: float) -> Array:
    """Returns ``f32[S]``: ``scalars / (step * count)`` over the finite ones, 0 for the others."""
    finite = jnp.isfinite(scalars)
    count = jnp.maximum(jnp.sum(finite), 1)
    return jnp.where(finite, scalars, 0.0) / (step * count)


def combine(add_direction: AddDirection, coefficients: Array, key: Array, like: Params) -> Params:
    """Returns ``sum_m coefficients[m] * z(fold_in(key, m))``, shaped like ``like``.

    A scan that regenerates one direction at a time: memory is the result, whatever S, and the order
    of the additions is fixed, so that every party gets the same bits.
    """

    def add(total, item):
        direction, coefficient = item
        return add_direction(total, jax.random.fold_in(key, direction), coefficient), None

    zeros = jax.tree.map(jnp.zeros_like, like)
    total, _ = jax.lax.scan(add, zeros, (jnp.arange(coefficients.shape[0]), coefficients))
    return total


def _mean(values: Array, weights: Array) -> Array:
    # 0 * inf of a padding example would be NaN.
    return jnp.sum(jnp.where(weights > 0, weights * values, 0.0))


def _check(eps: float, num_directions: int) -> None:
    if not eps > 0:
        raise ConfigError(f"eps is {eps}; it must be > 0; change config.zo.eps")
    if num_directions < 1:
        raise ConfigError(
            f"num_directions is {num_directions}; it must be >= 1; change config.zo.num_directions"
        )


ESTIMATORS = {"two_point": two_point}
