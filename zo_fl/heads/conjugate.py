"""Ridge regression by preconditioned conjugate gradients: what a server keeps, and its steps.

The normal equations of ``closed_form.ridge`` for all classes side by side, ``A W = R`` with

    A = 1/n sum x x^T + penalty I,   R = 1/n sum x y^T,   x = (h - mean) / deviation,

but of the first sum nobody holds more than its products with a few vectors. One step along
``M^-1 residual`` for each class, where M is near A and can be solved.

Source: Hestenes and Stiefel 1952.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zo_fl.engine.types import Array
from zo_fl.heads import closed_form


class Solution(NamedTuple):
    """A solution so far; all in standardized features.

    Attributes:
      mean: ``f32[d]``, of the features.
      scale: ``f32[d]``, one over the deviation; 0 of a constant feature.
      prior: ``f32[C]``, the share of each class.
      num_examples: ``f32[]``.
      weights: ``f32[d, C]``.
      residual: ``f32[d, C]``.
      direction: ``f32[d, C]``, of the next step.
      energy: ``f32[C]``, of the residual: its product with ``M^-1`` residual.
      factor: ``f32[d, d]``, M's Cholesky factor; before ``begin`` the covariance within classes
        that M is made of; ``()`` where M is the identity.
    """

    mean: Array
    scale: Array
    prior: Array
    num_examples: Array
    weights: Array
    residual: Array
    direction: Array
    energy: Array
    factor: Array | tuple[()]


def nothing(dim: int, num_classes: int, preconditioned: bool) -> Solution:
    """Returns what is known before any sums: ``W = 0``."""
    of_features, of_classes, zeros = (
        jnp.zeros(shape) for shape in (dim, num_classes, (dim, num_classes))
    )
    factor = jnp.zeros((dim, dim)) if preconditioned else ()
    return Solution(
        of_features,
        of_features,
        of_classes,
        jnp.zeros(()),
        zeros,
        zeros,
        zeros,
        of_classes,
        factor,
    )


def begin(
    known: Solution, squares: Array, class_sums: Array, class_counts: Array, diagonal: float
) -> Solution:
    """Returns what is ready for the first step.

    ``M = W + B + diagonal I``: W is the covariance within classes that is known, of whomever, and B
    that between classes, which the sums give.

    Args:
      known: nothing yet, but for that covariance.
      squares: ``f32[d]``, ``sum h^2`` over all examples.
      class_sums: ``f32[d, C]``, of the features.
      class_counts: ``f32[C]``.
      diagonal: of features of variance 1.
    """
    count = jnp.maximum(class_counts.sum(), 1)
    mean, prior = class_sums.sum(1) / count, class_counts / count
    scale = closed_form.standardizing(mean, squares / count - mean**2)
    cross = (class_sums / count - jnp.outer(mean, prior)) * scale[:, None]
    if not isinstance(known.factor, tuple):
        # Of the residual of class c, 1/n sum (h - mean) y_c, the mean of class c is a multiple.
        between = closed_form.full_product(cross / jnp.maximum(prior, 1e-9)[None], cross.T)
        matrix = known.factor * jnp.outer(scale, scale) + between
        factor = jnp.linalg.cholesky(matrix + diagonal * jnp.eye(len(scale)))
        known = known._replace(factor=factor)
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
      known: the one before.
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


def head(known: Solution) -> tuple[Array, Array]:
    """Returns ``(kernel f32[d, C], bias f32[C])`` of the features themselves."""
    kernel = known.weights * known.scale[:, None]
    return kernel, known.prior - closed_form.full_product(known.mean[None], kernel)[0]


def _preconditioned(known: Solution, residual: Array) -> Array:
    """Returns ``M^-1 residual``."""
    if isinstance(known.factor, tuple):
        return residual
    return jax.scipy.linalg.cho_solve((known.factor, True), residual)
