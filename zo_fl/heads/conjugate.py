"""Ridge regression by preconditioned conjugate gradients: the server's solution, and its steps.

The normal equations of ``closed_form.ridge`` for all classes side by side, ``A W = R`` with

    A = 1/n sum x x^T + penalty I,   R = 1/n sum x y^T,   x = (h - mean) / deviation,

where the server knows no more of A than its products with a few vectors. A step follows one
direction for each class, ``M^-1 residual`` and a part of the direction before, where M is close to
A and can be solved.

Source: Hestenes and Stiefel 1952.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zo_fl.engine.types import Array
from zo_fl.heads import closed_form
from zo_fl.heads.closed_form import Moments


class Solution(NamedTuple):
    """A solution so far; all in standardized features.

    Attributes:
      mean: ``f32[d]``, of the features.
      scale: ``f32[d]``, one over the deviation; 0 for a constant feature.
      prior: ``f32[C]``, the share of each class.
      num_examples: ``f32[]``.
      weights: ``f32[d, C]``.
      residual: ``f32[d, C]``.
      direction: ``f32[d, C]``, of the next step.
      energy: ``f32[C]``, the residual's product with ``M^-1 residual``.
      factor: ``f32[d, d]``, M's Cholesky factor; before ``begin`` the covariance within classes
        from which M is made.
    """

    mean: Array
    scale: Array
    prior: Array
    num_examples: Array
    weights: Array
    residual: Array
    direction: Array
    energy: Array
    factor: Array


def nothing(dim: int, num_classes: int) -> Solution:
    """Returns the solution before any sums: ``W = 0``."""
    shapes = (dim,), (dim,), (num_classes,), (), *((dim, num_classes),) * 3, (num_classes,)
    return Solution(*map(jnp.zeros, shapes), factor=jnp.zeros((dim, dim)))


def begin(known: Solution, sums: Moments, diagonal: float) -> Solution:
    """Returns the solution before the first step.

    ``M = W + B + diagonal I``: W is the covariance within classes that is known, whoever's it is,
    and B that between classes, which follows from the sums.

    Args:
      known: nothing yet, but for that covariance.
      sums: of all examples; ``gram`` is the diagonal ``f32[d]``, ``sum h^2``.
      diagonal: added to features of variance 1.
    """
    count = jnp.maximum(sums.class_counts.sum(), 1)
    mean, prior = sums.class_sums.sum(1) / count, sums.class_counts / count
    scale = closed_form.standardizing(mean, sums.gram / count - mean**2)
    cross = (sums.class_sums / count - jnp.outer(mean, prior)) * scale[:, None]
    # The residual of class c, 1/n sum (h - mean) y_c, is a multiple of the mean of class c.
    between = closed_form.product(cross / jnp.maximum(prior, 1e-9)[None], cross.T)
    matrix = known.factor * jnp.outer(scale, scale) + between
    known = known._replace(factor=jnp.linalg.cholesky(matrix + diagonal * jnp.eye(len(scale))))
    direction = _preconditioned(known, cross)
    return known._replace(
        mean=mean,
        scale=scale,
        prior=prior,
        num_examples=count,
        residual=cross,
        direction=direction,
        energy=jnp.sum(cross * direction, axis=0),
    )


def step(known: Solution, ahead: Array) -> Solution:
    """Returns the solution after one step for each class.

    Args:
      known: the solution before.
      ahead: ``f32[d, C]``, A's product with ``known.direction``.
    """
    curvature = jnp.sum(known.direction * ahead, axis=0)
    length = jnp.where(curvature > 0, known.energy / jnp.maximum(curvature, 1e-30), 0.0)
    residual = known.residual - length[None] * ahead
    toward = _preconditioned(known, residual)
    energy = jnp.sum(residual * toward, axis=0)
    ratio = energy / jnp.maximum(known.energy, 1e-30)
    return known._replace(
        weights=known.weights + length[None] * known.direction,
        residual=residual,
        direction=toward + ratio[None] * known.direction,
        energy=energy,
    )


def head(known: Solution) -> dict[str, Array]:
    """Returns the head ``{"kernel": f32[d, C], "bias": f32[C]}`` of the features themselves."""
    kernel = known.weights * known.scale[:, None]
    return {
        "kernel": kernel,
        "bias": known.prior - closed_form.product(known.mean[None], kernel)[0],
    }


def _preconditioned(known: Solution, residual: Array) -> Array:
    """Returns ``M^-1 residual``."""
    return jax.scipy.linalg.cho_solve((known.factor, True), residual)
