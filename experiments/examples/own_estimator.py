"""A new zeroth-order estimator: forward gradients, exact directional derivatives instead of
differences of losses.

    scalar_m = <grad F(w), z_m> by forward-mode differentiation,   gradient = 1/S sum_m scalar_m z_m

No eps, no rounding; about two passes a direction, and still no stored activations. For the MLP:
convolutions and pooling here have gradients of their own, which forward mode cannot differentiate.

    python -m experiments.examples.own_estimator

Source: Baydin et al. 2022 (arXiv 2202.08587).
"""

import jax
import jax.numpy as jnp
import optax

import zo_fl
from zo_fl.clients.estimators import ESTIMATORS, Estimate, Estimator, finite_mean_coefficients


def jvp(add_direction, *, eps: float, num_directions: int) -> Estimator:
    """Returns the estimator; ``eps`` is not used."""
    del eps

    def estimate(losses, weights, params, keys):
        def one(key):
            direction = add_direction(optax.tree.zeros_like(params), key, 1.0)
            mean = lambda p: jnp.sum(jnp.where(weights > 0, weights * losses(p), 0.0))  # noqa: E731
            return jax.jvp(mean, (params,), (direction,))

        values, scalars = jax.lax.map(one, keys)
        return Estimate(scalars, jnp.mean(values))

    coefficients = lambda scalars: finite_mean_coefficients(scalars, 1.0)  # noqa: E731
    return Estimator(estimate, coefficients, passes=2 * num_directions)


ESTIMATORS["jvp"] = jvp


if __name__ == "__main__":
    changes = {"zo.estimator": "jvp", "model.name": "mlp", "model.norm": "none"}
    zo_fl.run("quickstart", "runs/jvp", changes=changes)
