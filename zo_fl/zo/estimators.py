"""Zeroth-order estimators: pairs of functions around the scalars that travel.

``estimate`` runs at the client and turns losses at perturbed weights into ``f32[S]`` scalars, one a
direction; ``coefficients`` runs anywhere and turns them into the factors of the directions in the
gradient estimate, which ``combine`` adds up. A new estimator is one function that returns such a
pair, and its name in ``ESTIMATORS``. With a ``bound`` above 0 no example may move a scalar by more
than bound / n (``_bounded_means``); an estimator that cannot do so refuses it.

Losses come *per example*: differences are taken example by example before they are averaged. The
two losses of a pair agree to five or six digits (eps * tau = 7.5e-5), and a difference of two
rounded means would be mostly rounding.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from zo_fl.engine.fields import FieldError
from zo_fl.engine.precision import forward_mode
from zo_fl.engine.types import Array, Params
from zo_fl.zo.directions import AddDirection

Losses = Callable[[Params], Array]  # params -> f32[n], a loss an example


class Estimate(NamedTuple):
    """The result of a client's probes: ``f32[S]``, which is uploaded, and the mean loss ``f32[]``.

    The mean is over the probes that are finite, NaN if none is.
    """

    scalars: Array
    loss: Array


class Estimator(NamedTuple):
    """A zeroth-order gradient estimator.

    Attributes:
      estimate: ``(losses, weights f32[n], params, keys key[S]) -> Estimate``, the client's half:
        weights sum to one; padding has 0, and its losses may be NaN. Keys are one a direction.
      coefficients: ``f32[S] scalars -> f32[S]``: the gradient estimate is ``sum_m coefficients[m] *
        z(keys[m])``. A probe that is not finite gets 0, and the mean is over the others.
      passes: forward passes over the client's examples that one ``estimate`` takes.
    """

    estimate: Callable[[Losses, Array, Params, Array], Estimate]
    coefficients: Callable[[Array], Array]
    passes: int


def two_point(
    add_direction: AddDirection, *, eps: float, num_directions: int, bound: float = 0.0
) -> Estimator:
    """Returns the antithetic two-point estimator (SPSA averaged over S directions).

        scalar_m = F(w + eps z_m) - F(w - eps z_m)
        gradient = 1/S sum_m scalar_m / (2 eps) z_m

    The scalar is the bare loss difference, as the paper uploads it.

    Source: ZOWarmUp, Algorithm 1 and section 3.2; Spall 1992.
    """

    def estimate(losses, weights, params, keys):
        scales = jnp.tile(jnp.array([1.0, -1.0]), num_directions) * eps
        passes = _passes(add_direction, losses, params, jnp.repeat(keys, 2, axis=0), scales)
        plus, minus = passes[0::2], passes[1::2]
        means = _means((plus + minus) / 2, weights)
        loss = jnp.mean(means, where=jnp.isfinite(means))
        return Estimate(_bounded_means(plus - minus, weights, bound), loss)

    coefficients = functools.partial(finite_mean_coefficients, step=2 * eps)
    return Estimator(estimate, coefficients, passes=2 * num_directions)


def forward(
    add_direction: AddDirection, *, eps: float, num_directions: int, bound: float = 0.0
) -> Estimator:
    """Returns the forward difference: S + 1 passes instead of 2 S, with an error of order eps.

        scalar_m = F(w + eps z_m) - F(w),    gradient = 1/S sum_m scalar_m / eps z_m

    Source: BAFFLE (arXiv 2301.12195), FedZO (Fang et al. 2022), DeComFL (arXiv 2405.15861).
    """

    def estimate(losses, weights, params, keys):
        # The unperturbed pass is one more turn of the same loop, its direction scaled by zero.
        scales = jnp.concatenate([jnp.zeros(1), jnp.full(num_directions, eps)])
        keys = jnp.concatenate([keys[:1], keys])
        passes = _passes(add_direction, losses, params, keys, scales)
        scalars = _bounded_means(passes[1:] - passes[:1], weights, bound)
        return Estimate(scalars, _mean(passes[0], weights))

    coefficients = functools.partial(finite_mean_coefficients, step=eps)
    return Estimator(estimate, coefficients, passes=num_directions + 1)


def jvp(
    add_direction: AddDirection, *, eps: float, num_directions: int, bound: float = 0.0
) -> Estimator:
    """Returns the forward gradient: exact directional derivatives by forward-mode differentiation.

        scalar_m = <grad F(w), z_m>,    gradient = 1/S sum_m scalar_m z_m

    No eps and next to no rounding. Activations are not kept, but travel in pairs with their
    derivatives, and the direction is held beside the weights; a direction takes about two passes.

    Source: Baydin et al. 2022 (arXiv 2202.08587).
    """
    if bound:
        raise FieldError("bound", f"={bound:g}: jvp bounds no single examples; allowed: none")

    def estimate(losses, weights, params, keys):
        def one(key):
            direction = add_direction(optax.tree.zeros_like(params), key, 1.0)
            with forward_mode():
                return jax.jvp(lambda p: _mean(losses(p), weights), (params,), (direction,))

        means, scalars = jax.lax.map(one, keys)
        return Estimate(scalars, jnp.mean(means, where=jnp.isfinite(means)))

    coefficients = functools.partial(finite_mean_coefficients, step=1.0)
    return Estimator(estimate, coefficients, passes=2 * num_directions)


def _passes(add: AddDirection, losses: Losses, params: Params, keys: Array, scales: Array) -> Array:
    """Returns ``f32[P, n]``, the losses at ``params + scale * z(key)`` of P keys and scales.

    One pass at a time, in one loop: one perturbed copy of the weights exists at once, and the model
    is compiled once.
    """

    def one_pass(item):
        # Without the barrier XLA fuses the drawing of a norm's scales and biases into every use of
        # them, once for each activation: 20 ms instead of 2 for a layer of ResNet18 on a CPU.
        return losses(jax.lax.optimization_barrier(add(params, *item)))

    return jax.lax.map(one_pass, (keys, scales))


def _mean(values: Array, weights: Array) -> Array:
    # 0 * inf of a padding example would be NaN.
    return jnp.sum(jnp.where(weights > 0, weights * values, 0.0))


_means = jax.vmap(_mean, in_axes=(0, None))


def _bounded_means(differences: Array, weights: Array, bound: float) -> Array:
    """Returns ``f32[S]``, means over examples of loss differences ``f32[S, n]``.

    With a bound they are clipped to [-bound, bound], and one that is not finite says nothing.
    """
    if bound:
        differences = jnp.clip(jnp.nan_to_num(differences, nan=0.0), -bound, bound)
    return _means(differences, weights)


def finite_mean_coefficients(scalars: Array, step: float) -> Array:
    """Returns ``f32[S]``: ``scalars / (step * count)`` over the finite ones, 0 for the others."""
    finite = jnp.isfinite(scalars)
    count = jnp.maximum(jnp.sum(finite), 1)
    return jnp.where(finite, scalars, 0.0) / (step * count)


def combine(add_direction: AddDirection, coefficients: Array, keys: Array, start: Params) -> Params:
    """Returns ``start + sum_m coefficients[m] * z(keys[m])``.

    A scan that regenerates one direction at a time: memory is the result, whatever S, and the order
    of the additions is fixed, so that every party gets the same bits.

    Args:
      add_direction: from ``directions.create``.
      coefficients: ``f32[S]``.
      keys: ``key[S]``.
      start: parameters, or zeros like them.
    """

    def add(total, item):
        key, coefficient = item
        return add_direction(total, key, coefficient), None

    return jax.lax.scan(add, start, (keys, coefficients))[0]


ESTIMATORS: dict[str, Callable[..., Estimator]] = {
    "two_point": two_point,
    "forward": forward,
    "jvp": jvp,
}
