"""Linear heads in closed form, from sums over examples that anyone may add up in any order.

With features h (f32[d]) and one-hot labels y (f32[C]), the sums over *all* examples of all clients

    gram = sum h h^T,   class_sums = sum h y^T,   class_counts = sum y

give the ridge regression of the pooled data, however it is spread over clients. Class sums, class
counts and a covariance give the linear discriminant.

Sources: AFL (arXiv 2405.16240) and Fed3R (2406.01116) for ridge, FedCGS (2503.06962) and FedNCM
(2306.03937) for class means.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zo_fl.engine.types import Array, Params, PyTree

_ROWS = 128  # rows of a Gram matrix computed at once: their products below its diagonal are wasted
_CONSTANT = 1e-6  # share of the mean square: a smaller variance is rounding, the feature constant
_FLOOR = 0.02  # share of the largest variance: how far principal directions are whitened


class Moments(NamedTuple):
    """Sums over examples.

    Attributes:
      gram: ``f32[d (d + 1) / 2]``, the upper triangle of ``sum h h^T`` as ``pack`` orders it; in
        ``ridge_cg`` its diagonal ``f32[d]``; ``()`` where class means are enough.
      class_sums: ``f32[d, C]``, the sum of each class's features.
      class_counts: ``f32[C]``, examples of each class.
    """

    gram: PyTree
    class_sums: Array
    class_counts: Array


class Heads(NamedTuple):
    """Candidate heads, from which clients choose one.

    Attributes:
      kernel: ``f32[L, d, C]``.
      bias: ``f32[L, C]``.
    """

    kernel: Array
    bias: Array

    def at(self, index: int | Array) -> Params:
        """Returns one head, ``{"kernel": f32[d, C], "bias": f32[C]}``."""
        return {"kernel": self.kernel[index], "bias": self.bias[index]}


class Basis(NamedTuple):
    """Coordinates of features: ``(h - origin) @ directions`` replaces ``h``.

    Attributes:
      origin: ``f32[d]``.
      directions: ``f32[d, k]``; ``()`` for the features' own.
    """

    origin: Array
    directions: Any = ()

    @property
    def size(self) -> int:
        """k, coordinates of an example."""
        return len(self.origin) if isinstance(self.directions, tuple) else self.directions.shape[1]


MaybeBasis = Basis | tuple[()]  # ``()``: features as they are


def product(left: Array, right: Array) -> Array:
    """Returns the product of two matrices in full float32 precision, not JAX's default."""
    return jnp.matmul(left, right, precision="highest")


def gram_blocks(features: Array) -> tuple[Array, ...]:
    """Returns the upper half of the Gram matrix of ``f32[n, d]``, in blocks to be added up.

    Block ``f32[rows, d - start]`` holds rows ``start`` and following, from column ``start`` on.
    """
    return tuple(
        product(features[:, i:j].T, features[:, i:]) for i, j in _row_blocks(features.shape[1])
    )


def pack(blocks: Iterable[Array]) -> Array:
    """Returns the upper triangle ``f32[d (d + 1) / 2]`` of a matrix cut as ``gram_blocks``."""
    return jnp.concatenate([*_parts(blocks)])


def _parts(blocks: Iterable[Any]) -> Iterator[Any]:
    for block in blocks:
        size = len(block)
        yield block[:, :size][np.triu_indices(size)]
        yield block[:, size:].reshape(-1)


def unpack(packed: Array, dim: int) -> Array:
    """Returns the symmetric matrix ``f32[dim, dim]`` from its packed upper triangle."""
    blocks, begin = [], 0
    for start, stop in _row_blocks(dim):
        size, beside = stop - start, dim - stop
        middle = begin + size * (size + 1) // 2
        end = middle + size * beside
        square = jnp.zeros((size, size), packed.dtype)
        square = square.at[np.triu_indices(size)].set(packed[begin:middle])
        right = packed[middle:end].reshape(size, beside)
        left = jnp.zeros((size, start), packed.dtype)
        blocks.append(jnp.concatenate([left, square, right], axis=1))
        begin = end
    upper = jnp.concatenate(blocks)
    return upper + upper.T - jnp.diag(jnp.diag(upper))


def packed_diagonal(packed: Array, dim: int) -> Array:
    """Returns the diagonal ``f32[dim]`` of a packed symmetric matrix."""
    is_diagonal = _parts(np.eye(j - i, dim - i, dtype=bool) for i, j in _row_blocks(dim))
    return packed[np.flatnonzero(np.concatenate([*is_diagonal]))]


def packed_product(rows: Array) -> Array:
    """Returns the packed ``rows^T rows`` of ``f32[n, d]``."""
    return pack(gram_blocks(rows))


def mean_and_covariance(moments: Moments) -> tuple[Array, Array]:
    """Returns mean ``f32[d]`` and covariance ``f32[d, d]`` of all examples."""
    count = jnp.maximum(moments.class_counts.sum(), 1)
    mean = moments.class_sums.sum(1) / count
    return mean, unpack(moments.gram, len(mean)) / count - jnp.outer(mean, mean)


def within_covariance(moments: Moments) -> Array:
    """Returns the covariance ``f32[d, d]`` within classes, pooled over the classes."""
    means = moments.class_sums / jnp.maximum(moments.class_counts, 1)[None]
    scatter = unpack(moments.gram, len(means)) - product(means, moments.class_sums.T)
    return scatter / jnp.maximum(moments.class_counts.sum(), 1)


def semidefinite(moments: Moments) -> Moments:
    """Returns the closest sums to noisy ones without a negative count or variance."""
    counts = jnp.maximum(moments.class_counts, 0)
    moments = moments._replace(class_counts=counts)
    mean, covariance = mean_and_covariance(moments)
    variances, vectors = jnp.linalg.eigh(covariance)
    covariance = product(vectors * jnp.maximum(variances, 0)[None], vectors.T)
    second = (covariance + jnp.outer(mean, mean)) * jnp.maximum(counts.sum(), 1)
    return moments._replace(gram=pack(second[i:j, i:] for i, j in _row_blocks(len(mean))))


def standardizing(mean: Array, variance: Array) -> Array:
    """Returns one over the deviation of each feature ``f32[d]``, 0 for a constant one."""
    varies = variance > _CONSTANT * (variance + mean**2)
    return jnp.where(varies, jax.lax.rsqrt(jnp.where(varies, variance, 1.0)), 0.0)


def ridge(moments: Moments, penalties: Array) -> Heads:
    """Returns the ridge regression of one-hot labels on standardized features, per penalty.

    ``argmin_W,b  1/n sum |W^T (h - mean) / std + b - y|^2 + penalty |W|^2``, rewritten as heads of
    the features themselves. A constant feature has weight 0.

    Args:
      moments: of all examples.
      penalties: ``f32[L]``, for features of variance 1.
    """
    mean, covariance = mean_and_covariance(moments)
    scale = standardizing(mean, jnp.diag(covariance))
    count = jnp.maximum(moments.class_counts.sum(), 1)
    prior = moments.class_counts / count
    cross = (moments.class_sums / count - jnp.outer(mean, prior)) * scale[:, None]
    weights = _solve(covariance * jnp.outer(scale, scale), cross, penalties)
    kernel = weights * scale[None, :, None]
    return Heads(kernel, prior[None] - _logits_of(mean, kernel))


def discriminant(
    class_sums: Array, class_counts: Array, covariance: Array, shrinkages: Array
) -> Heads:
    """Returns linear discriminants: Gaussian classes that share a covariance.

    ``W = S^-1 M,  b = log prior - diag(M^T W) / 2,  S = covariance + shrinkage tr(covariance)/d I``

    Args:
      class_sums: ``f32[d, C]``.
      class_counts: ``f32[C]``; a class without examples is never predicted.
      covariance: ``f32[d, d]`` within classes.
      shrinkages: ``f32[L]``.
    """
    count = jnp.maximum(class_counts.sum(), 1)
    held = class_counts > 0
    center = class_sums.sum(1) / count
    means = class_sums / jnp.maximum(class_counts, 1)[None] - center[:, None]
    means = jnp.where(held[None], means, 0)
    log_prior = jnp.where(held, jnp.log(jnp.maximum(class_counts, 1) / count), -1e6)
    average = jnp.trace(covariance) / covariance.shape[0]
    average = jnp.where(average > 0, average, 1.0)  # of features that vary nowhere: any will do
    kernel = _solve(covariance, means, shrinkages * average)
    quadratic = -0.5 * jnp.einsum("dc,ldc->lc", means, kernel, precision="highest")
    return Heads(kernel, quadratic + log_prior[None] - _logits_of(center, kernel))


def principal_basis(moments: Moments, size: int, origin: Array) -> Basis:
    """Returns the ``size`` principal directions of features, partly whitened.

    ``moments`` are of features from ``origin`` ``f32[d]`` on. Each direction is divided by
    ``(w + 0.02 w_1)^(1/2)``, w the variances along them: large variances do not drown the others,
    and small ones, which are noise, are not blown up.
    """
    mean, covariance = mean_and_covariance(moments)
    variances, vectors = jnp.linalg.eigh(covariance)
    variances, vectors = variances[::-1][:size], vectors[:, ::-1][:, :size]
    floor = jnp.where(variances[0] > 0, _FLOOR * variances[0], 1.0)
    scale = jax.lax.rsqrt(jnp.maximum(variances, 0) + floor)
    return Basis(origin + mean, vectors * scale[None])


def project(basis: MaybeBasis, features: Array) -> Array:
    """Returns the coordinates ``f32[n, k]`` of features ``f32[n, d]``; themselves for ``()``."""
    if not basis:
        return features
    moved = features - basis.origin[None]
    return moved if isinstance(basis.directions, tuple) else product(moved, basis.directions)


def unfold(basis: MaybeBasis, heads: Heads) -> Heads:
    """Returns heads of the features themselves from heads of their coordinates."""
    if not basis:
        return heads
    kernel = heads.kernel
    if not isinstance(basis.directions, tuple):
        kernel = jnp.einsum("dk,lkc->ldc", basis.directions, kernel, precision="highest")
    return Heads(kernel, heads.bias - _logits_of(basis.origin, kernel))


def _solve(matrix: Array, right: Array, ridges: Array) -> Array:
    """Returns ``(matrix + ridge I)^-1 right``, ``f32[L, d, C]``; NaN for an indefinite matrix."""

    def one(ridge):
        factor = jax.scipy.linalg.cho_factor(matrix + ridge * jnp.eye(matrix.shape[0]))
        return jax.scipy.linalg.cho_solve(factor, right)

    return jax.lax.map(one, jnp.asarray(ridges, jnp.float32))


def _logits_of(center: Array, kernel: Array) -> Array:
    """Returns the logits ``f32[L, C]`` of one feature vector, without a bias."""
    return jnp.einsum("d,ldc->lc", center, kernel, precision="highest")


def _row_blocks(dim: int) -> Iterator[tuple[int, int]]:
    for start in range(0, dim, _ROWS):
        yield start, min(start + _ROWS, dim)
