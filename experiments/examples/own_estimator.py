"""A new zeroth-order estimator: differences of losses that are exact up to the fourth order in eps.

    scalar_m = 4/3 (F(w + eps z_m) - F(w - eps z_m)) - 1/6 (F(w + 2 eps z_m) - F(w - 2 eps z_m))
    gradient = 1/S sum_m scalar_m / (2 eps) z_m

It allows a larger eps, at which rounding matters less, for twice the passes of ``two_point``.

    python -m experiments.examples.own_estimator

Source: Fornberg 1988, the central difference of five points.
"""

import jax
import jax.numpy as jnp

import zo_fl
from zo_fl.engine.fields import FieldError
from zo_fl.zo.estimators import ESTIMATORS, Estimate, Estimator, finite_mean_coefficients

STEPS, FACTORS = (1.0, -1.0, 2.0, -2.0), (4 / 3, -4 / 3, -1 / 6, 1 / 6)


def five_point(add_direction, *, eps, num_directions: int, bound: float = 0.0) -> Estimator:
    """Returns the estimator."""
    if bound:
        raise FieldError("bound", f"={bound:g}: five_point bounds no examples; allowed: none")

    def estimate(losses, weights, params, keys):
        def one(key):
            passes = jax.lax.map(
                lambda step: losses(add_direction(params, key, step * eps)), jnp.array(STEPS)
            )
            # Example by example, before the mean: see zo_fl/zo/estimators.py.
            differences = jnp.array(FACTORS) @ passes
            both = jnp.stack([differences, passes[0]])
            # A loss of padding, whose weight is 0, may be NaN.
            return jnp.sum(jnp.where(weights[None] > 0, weights[None] * both, 0.0), axis=1)

        scalars, means = jax.lax.map(one, keys).T
        return Estimate(scalars, jnp.mean(means))

    coefficients = lambda scalars: finite_mean_coefficients(scalars, 2 * eps)  # noqa: E731
    return Estimator(estimate, coefficients, passes=4 * num_directions)


CHANGES = {"algorithm": "zowarmup", "zo.estimator": "five_point"}

if __name__ == "__main__":
    ESTIMATORS["five_point"] = five_point
    zo_fl.run("quickstart", "runs/five_point", changes=CHANGES)
