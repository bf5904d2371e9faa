"""Linear heads in closed form, from sums over examples that anyone may add up in any order.

With features h (f32[d]) and one-hot labels y (f32[C]), sums over *all* examples of all clients

    gram = sum h h^T,   class_sums = sum h y^T,   class_counts = sum y

give the ridge regression of all data, whoever holds what; class_sums, class_counts and a covariance
give the linear discriminant. Everything is computed at full float32 precision.

Sources: AFL (arXiv 2405.16240) and Fed3R (2406.01116) for ridge, FedCGS (2503.06962) and FedNCM
(2306.03937) for class means.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zo_fl.engine.types import Array, PyTree

_ROWS = 128  # of a Gram matrix that are computed at once: what is below its diagonal is wasted
_CONSTANT = 1e-6  # of the mean square: a smaller variance is rounding, and the feature constant


class Moments(NamedTuple):
    """Sums over examples.

    Attributes:
      gram: ``f32[d (d + 1) / 2]``, the upper triangle of ``sum h h^T`` as ``pack`` orders it;
        ``()`` where only class means are wanted.
      class_sums: ``f32[d, C]``, the sum of each class's features.
      class_counts: ``f32[C]``, examples of each class.
    """

    gram: PyTree
    class_sums: Array
    class_counts: Array


class Heads(NamedTuple):
    """Several heads, of which one will be chosen.

    Attributes:
      kernel: ``f32[L, d, C]``.
      bias: ``f32[L, C]``.
    """

    kernel: Array
    bias: Array


class Basis(NamedTuple):
    """Directions on which features are seen: ``(h - mean) @ directions`` instead of ``h``.

    Attributes:
      mean: ``f32[d]``.
      directions: ``f32[d, k]``.
    """

    mean: Array
    directions: Array


def no_moments(dim: int, num_classes: int) -> Moments:
    """Returns the sums over nothing of ``dim`` features."""
    return Moments(
        jnp.zeros(dim * (dim + 1) // 2), jnp.zeros((dim, num_classes)), jnp.zeros(num_classes)
    )


def pack(rows_of: Callable[[int, int], Array], dim: int) -> Array:
    """Returns the upper triangle ``f32[dim (dim + 1) / 2]`` of a symmetric matrix.

    Args:
      rows_of: ``(start, stop) -> f32[stop - start, dim - start]``: some rows, from the column
        ``start`` on.
      dim: rows of the matrix.
    """
    parts = []
    for start, stop in _row_blocks(dim):
        rows, size = rows_of(start, stop), stop - start
        parts += [rows[:, :size][np.triu_indices(size)], rows[:, size:].reshape(-1)]
    return jnp.concatenate(parts)


def unpack(packed: Array, dim: int) -> Array:
    """Returns the symmetric matrix ``f32[dim, dim]`` whose upper triangle was packed."""
    blocks, begin = [], 0
    for start, stop in _row_blocks(dim):
        size, beside = stop - start, dim - stop
        end = begin + size * (size + 1) // 2
        square = jnp.zeros((size, size), packed.dtype)
        square = square.at[np.triu_indices(size)].set(packed[begin:end])
        begin, end = end, end + size * beside
        right = packed[begin:end].reshape(size, beside)
        begin = end
        left = jnp.zeros((size, start), packed.dtype)
        blocks.append(jnp.concatenate([left, square, right], axis=1))
    upper = jnp.concatenate(blocks)
    return upper + upper.T - jnp.diag(jnp.diag(upper))


def packed_diagonal(packed: Array, dim: int) -> Array:
    """Returns the diagonal ``f32[dim]`` of the symmetric matrix whose upper triangle was packed."""
    places, begin = [], 0
    for start, stop in _row_blocks(dim):
        size = stop - start
        rows = np.arange(size)
        places.append(begin + rows * size - rows * (rows - 1) // 2)
        begin += size * (size + 1) // 2 + size * (dim - stop)
    return packed[np.concatenate(places)]


def packed_product(rows: Array) -> Array:
    """Returns the packed ``rows^T rows`` of ``f32[n, d]``."""
    return pack(lambda i, j: full_product(rows[:, i:j].T, rows[:, i:]), rows.shape[1])


def gram_rows(features: Array) -> tuple[Array, ...]:
    """Returns the Gram matrix of features ``f32[n, d]`` in blocks of rows, to be added up."""
    return tuple(
        full_product(features[:, i:j].T, features[:, i:]) for i, j in _row_blocks(features.shape[1])
    )


def pack_rows(blocks: tuple[Array, ...], dim: int) -> Array:
    """Returns the packed matrix of the blocks of ``gram_rows``."""
    by_start = dict(zip((i for i, _ in _row_blocks(dim)), blocks, strict=True))
    return pack(lambda i, j: by_start[i], dim)


def mean_and_covariance(moments: Moments) -> tuple[Array, Array]:
    """Returns mean ``f32[d]`` and covariance ``f32[d, d]`` of all examples."""
    dim = moments.class_sums.shape[0]
    count = jnp.maximum(moments.class_counts.sum(), 1)
    mean = moments.class_sums.sum(1) / count
    return mean, unpack(moments.gram, dim) / count - jnp.outer(mean, mean)


def semidefinite(moments: Moments) -> Moments:
    """Returns the sums nearest to noisy ones that examples can have: variances are not negative."""
    counts = jnp.maximum(moments.class_counts, 0)
    moments = moments._replace(class_counts=counts)
    mean, covariance = mean_and_covariance(moments)
    variances, vectors = jnp.linalg.eigh(covariance)
    covariance = full_product(vectors * jnp.maximum(variances, 0)[None], vectors.T)
    second = (covariance + jnp.outer(mean, mean)) * jnp.maximum(counts.sum(), 1)
    return moments._replace(gram=pack(lambda i, j: second[i:j, i:], len(mean)))


def within_covariance(moments: Moments) -> Array:
    """Returns ``f32[d, d]``, the covariance within classes, pooled."""
    dim = moments.class_sums.shape[0]
    count = jnp.maximum(moments.class_counts.sum(), 1)
    means = moments.class_sums / jnp.maximum(moments.class_counts, 1)[None]
    between = full_product(means, moments.class_sums.T)
    return (unpack(moments.gram, dim) - between) / count


def standardizing(mean: Array, variance: Array) -> Array:
    """Returns one over the deviation of each feature ``f32[d]``, 0 of a constant one."""
    varies = variance > _CONSTANT * (variance + mean**2)
    return jnp.where(varies, jax.lax.rsqrt(jnp.where(varies, variance, 1.0)), 0.0)


def ridge(moments: Moments, penalties: Array) -> Heads:
    """Returns ridge regression of the one-hot labels on standardized features.

    ``argmin_W,b  1/n sum |W^T (h - mean) / std + b - y|^2 + penalty |W|^2``, for each penalty, as
    heads of the features themselves. A constant feature has weight 0.

    Args:
      moments: of all examples.
      penalties: ``f32[L]``, relative to the variance of a feature, 1.
    """
    mean, covariance = mean_and_covariance(moments)
    variance = jnp.diag(covariance)
    scale = standardizing(mean, variance)
    count = jnp.maximum(moments.class_counts.sum(), 1)
    prior = moments.class_counts / count
    cross = (moments.class_sums / count - jnp.outer(mean, prior)) * scale[:, None]
    weights = _solve(covariance * jnp.outer(scale, scale), cross, penalties)
    kernel = weights * scale[None, :, None]
    return Heads(kernel, prior[None] - _shift(mean, kernel))


def discriminant(
    class_sums: Array, class_counts: Array, covariance: Array, shrinkages: Array
) -> Heads:
    """Returns linear discriminants: Gaussian classes of one covariance.

    ``W = S^-1 M,  b = log prior - diag(M^T W) / 2,  S = covariance + shrinkage tr(covariance)/d I``

    Args:
      class_sums: ``f32[d, C]``.
      class_counts: ``f32[C]``; a class that nobody holds is never predicted.
      covariance: ``f32[d, d]`` within classes.
      shrinkages: ``f32[L]``.
    """
    means, log_prior, center = _centered_means(class_sums, class_counts)
    average = jnp.trace(covariance) / covariance.shape[0]
    kernel = _solve(covariance, means, shrinkages * average)
    return Heads(kernel, _quadratic(means, kernel) + log_prior[None] - _shift(center, kernel))


def nearest_mean(class_sums: Array, class_counts: Array) -> Heads:
    """Returns the one head that predicts the class of the nearest mean, as ``discriminant``."""
    means, log_prior, center = _centered_means(class_sums, class_counts)
    kernel = means[None]
    absent = jnp.where(class_counts > 0, 0.0, jnp.min(log_prior))
    return Heads(kernel, _quadratic(means, kernel) + absent[None] - _shift(center, kernel))


def seen_on(basis: Basis, features: Array) -> Array:
    """Returns ``f32[n, k]``, what features ``f32[n, d]`` are on a basis."""
    return full_product(features - basis.mean[None], basis.directions)


def on_basis(basis: Basis, covariance: Array) -> Array:
    """Returns ``f32[k, k]``, the covariance ``f32[d, d]`` of what features are on a basis."""
    return full_product(basis.directions.T, full_product(covariance, basis.directions))


def unfold(basis: Basis, heads: Heads) -> Heads:
    """Returns heads of the features themselves, from heads of what they are on a basis."""
    kernel = jnp.einsum("dk,lkc->ldc", basis.directions, heads.kernel, precision="highest")
    return Heads(kernel, heads.bias - _shift(basis.mean, kernel))


def principal_basis(mean: Array, covariance: Array, size: int, floor: float) -> Basis:
    """Returns the ``size`` principal directions, partly whitened.

    Divided by ``(w + floor w_1)^(1/2)``, w the variances along them: the large ones do not drown
    the others, the small ones, which are noise, are not blown up.

    Args:
      mean: ``f32[d]``.
      covariance: ``f32[d, d]``.
      size: at most d.
      floor: share of the largest variance.
    """
    variances, vectors = jnp.linalg.eigh(covariance)
    variances, vectors = variances[::-1][:size], vectors[:, ::-1][:, :size]
    scale = jax.lax.rsqrt(jnp.maximum(variances, 0) + floor * variances[0])
    return Basis(mean, vectors * scale[None])


def random_basis(key: Array, dim: int, size: int) -> Basis:
    """Returns Gaussian directions that a key stands for."""
    directions = jax.random.normal(key, (dim, size)) / np.sqrt(dim)
    return Basis(jnp.zeros(dim), directions)


def full_product(left: Array, right: Array) -> Array:
    """Returns the product of two matrices, whatever precision products have by default."""
    return jnp.matmul(left, right, precision="highest")


def _solve(matrix: Array, right: Array, ridges: Array) -> Array:
    """Returns ``f32[L, d, C]``, ``(matrix + ridge I)^-1 right``; NaN where that is indefinite."""

    def one(ridge):
        factor = jax.scipy.linalg.cho_factor(matrix + ridge * jnp.eye(matrix.shape[0]))
        return jax.scipy.linalg.cho_solve(factor, right)

    return jax.lax.map(one, jnp.asarray(ridges, jnp.float32))


def _centered_means(class_sums: Array, class_counts: Array) -> tuple[Array, Array, Array]:
    """Returns class means around their center, log priors and the center; absent classes: 0."""
    count = jnp.maximum(class_counts.sum(), 1)
    held = class_counts > 0
    center = class_sums.sum(1) / count
    means = jnp.where(
        held[None], class_sums / jnp.maximum(class_counts, 1)[None] - center[:, None], 0
    )
    return means, jnp.where(held, jnp.log(jnp.maximum(class_counts, 1) / count), -1e6), center


def _quadratic(means: Array, kernel: Array) -> Array:
    return -0.5 * jnp.einsum("dc,ldc->lc", means, kernel, precision="highest")


def _shift(center: Array, kernel: Array) -> Array:
    """Returns ``f32[L, C]``, what a head of ``h - center`` adds to a head of ``h``."""
    return jnp.einsum("d,ldc->lc", center, kernel, precision="highest")


def _row_blocks(dim: int) -> Iterator[tuple[int, int]]:
    for start in range(0, dim, _ROWS):
        yield start, min(start + _ROWS, dim)
