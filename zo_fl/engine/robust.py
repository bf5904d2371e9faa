"""How a server reads messages that it cannot trust: what is missing, broken, too long or a lie.

    mean           of the updates, by the clients' weights
    median         of each coordinate, clients counting the same
    trimmed_mean   likewise, without the largest and the smallest values
    clip           the mean, each message being at most as long as the cohort's median one

A median needs updates that estimate the same thing. Sums of what each client alone holds (class
sums of a closed-form head, HeteroFL's channels) do not: there both are ``clip``, for which such a
message as a whole is scaled down, as though the client had fewer examples. Where directions are
each client's own a median is of little use, too (``zo.seed_policy``).

All but the mean need every update at once: a model a client, or, of scalars, a few bytes.

Sources: Yin et al. 2018 (arXiv 1803.01498) for the median and the trimmed mean.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from zo_fl.engine.fields import Block, Field
from zo_fl.engine.types import Array, PyTree

RULES = ("mean", "median", "trimmed_mean", "clip")

BLOCK: Block = {
    "rule": Field("mean", "of a round's updates: zo_fl/engine/robust.py", RULES),
    "trim": Field(0.1, "share that trimmed_mean leaves out at each end", at_least=0, below=0.5),
    "max_norm": Field(0.0, "of what a client sends, 0 = any; longer is scaled down", at_least=0),
    "tolerant": Field(False, "rounds go on without clients whose numbers are not finite"),
}


class Robust(NamedTuple):
    """Fields of the config block ``robust``; ``BLOCK`` says what they mean."""

    rule: str = "mean"
    trim: float = 0.1
    max_norm: float = 0.0
    tolerant: bool = False

    @property
    def looks_at_all(self) -> bool:
        """Whether the rule needs all updates at once."""
        return self.rule != "mean"

    def by_coordinate(self, reduce: str) -> bool:
        """Returns whether an aggregation that reduces so takes each coordinate by itself."""
        return self.rule in ("median", "trimmed_mean") and reduce == "mean"

    def clips(self, reduce: str) -> bool:
        """Returns whether an aggregation that reduces so scales messages to the median norm."""
        return self.looks_at_all and not self.by_coordinate(reduce)

    def bounded(self, sent: PyTree) -> PyTree:
        """Returns one client's message or update, no longer than ``max_norm``."""
        if not self.max_norm:
            return sent
        norm = jnp.maximum(optax.tree.norm(_floats(sent)), 1e-30)
        return scale(jnp.minimum(1.0, self.max_norm / norm), sent)

    def middle(self, stacked: PyTree, weights: Array) -> PyTree:
        """Returns the median or the trimmed mean of updates, coordinate by coordinate.

        Args:
          stacked: leaves ``f32[C, ...]``.
          weights: ``f32[C]``; only whether they are positive counts.
        """
        count = jnp.sum(weights > 0)
        share = jnp.floor(self.trim * count).astype(count.dtype)
        cut = jnp.maximum(count - 1, 0) // 2 if self.rule == "median" else share
        rank = jnp.arange(len(weights))
        kept = (rank >= cut) & (rank < count - cut)

        def one(leaf):
            along = lambda flags: flags.reshape((-1,) + (1,) * (leaf.ndim - 1))  # noqa: E731
            in_order = jnp.sort(jnp.where(along(weights > 0), leaf, jnp.inf), axis=0)
            total = jnp.sum(jnp.where(along(kept), in_order, 0), axis=0)
            return total / jnp.maximum(jnp.sum(kept), 1)

        return jax.tree.map(one, stacked)


def norms(stacked: PyTree) -> Array:
    """Returns ``f32[C]``, the length of each client's message: of its numbers with a fraction."""
    return jax.vmap(lambda sent: optax.tree.norm(_floats(sent)))(stacked)


def clip_factors(lengths: Array, weights: Array) -> Array:
    """Returns ``f32[C]``, what messages are multiplied by to be as long as the median one at most.

    Args:
      lengths: ``f32[C]``.
      weights: ``f32[C]``; messages of weight 0 have no say.
    """
    median = jnp.nanmedian(jnp.where(weights > 0, lengths, jnp.nan))
    return jnp.where(lengths > median, median / lengths, 1.0)


def scale(factor: Array, sent: PyTree) -> PyTree:
    """Returns a message times ``f32[]``; whole numbers in it (labels, counts) stay."""
    return jax.tree.map(lambda leaf: factor * leaf if _has_fraction(leaf) else leaf, sent)


def _floats(sent: PyTree) -> list[Array]:
    return [leaf for leaf in jax.tree.leaves(sent) if _has_fraction(leaf)]


def _has_fraction(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)
