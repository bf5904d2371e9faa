"""Robust aggregation, for messages that a server cannot trust: a phase with another reducer.

    mean           of the updates, by the clients' weights
    median         of each coordinate, clients counting the same
    trimmed_mean   likewise, without the largest and the smallest values
    clip           the mean, each message being at most as long as the cohort's median one

A median needs updates that estimate the same thing. Sums of what each client alone holds (class
sums of a closed-form head) do not: there both are ``clip``, which scales such a message down as a
whole, as though the client had fewer examples. Where directions are each client's own a median is
of little use, too (``zo.seed_policy``).

All but the mean need every update at once: a model a client, or, of scalars, a few bytes.

Source: Yin et al. 2018 (arXiv 1803.01498) for the median and the trimmed mean.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from zo_fl.engine.algorithm import Phase, Reducer
from zo_fl.engine.fields import Block, ConfigError, Field
from zo_fl.engine.types import Array, PyTree
from zo_fl.wrap import privacy

BLOCK: Block = {
    "rule": Field("mean", "reading of a round's updates", lambda: RULES),
    "trim": Field(0.1, "share that trimmed_mean leaves out at each end", at_least=0, below=0.5),
}


def aggregate(phase: Phase, robust: Mapping[str, Any]) -> Phase:
    """Returns the phase, its updates read by a rule; ``robust`` is the config block.

    Raises:
      ConfigError: the rule would read messages that hide nothing by themselves, or the phase
        has a reading of its own.
    """
    if robust["rule"] != "mean":
        privacy.check_shares(phase, "robust.rule", robust["rule"])
        if phase.server.reducer.middle is not None:
            raise ConfigError(
                f"config.robust.rule={robust['rule']!r} has no meaning where the server needs "
                f"every message, as in {phase.name}; allowed: 'mean'"
            )
    reducer = RULES[robust["rule"]](phase.server.reducer, robust["trim"])
    return phase._replace(server=phase.server._replace(reducer=reducer))


def median(reducer: Reducer, trim: float) -> Reducer:
    """Returns the median of each coordinate; of sums ``clip``."""
    return _without_ends(reducer, lambda count: jnp.maximum(count - 1, 0) // 2)


def trimmed_mean(reducer: Reducer, trim: float) -> Reducer:
    """Returns the mean of each coordinate without a share of both ends; of sums ``clip``."""
    return _without_ends(reducer, lambda count: jnp.floor(trim * count).astype(count.dtype))


def clip(reducer: Reducer, trim: float) -> Reducer:
    """Returns the mean, or sum, of messages that are scaled to the median length at most."""
    return reducer._replace(factors=clip_factors)


def clip_factors(lengths: Array, weights: Array) -> Array:
    """Returns ``f32[C]``, what messages are multiplied by to be as long as the median one at most.

    Messages of weight 0 have no say; lengths and weights are ``f32[C]``.
    """
    middle = jnp.nanmedian(jnp.where(weights > 0, lengths, jnp.nan))
    return jnp.where(lengths > middle, middle / lengths, 1.0)


def _without_ends(reducer: Reducer, cut_of: Callable[[Array], Array]) -> Reducer:
    if reducer.is_sum:
        return clip(reducer, 0.0)
    return reducer._replace(middle=functools.partial(_middle, cut_of=cut_of))


def _middle(stacked: PyTree, weights: Array, cut_of: Callable[[Array], Array]) -> PyTree:
    """Returns the mean of each coordinate without ``cut_of(clients)`` values at both ends.

    Of the weights ``f32[C]`` it only matters whether they are positive.
    """
    count = jnp.sum(weights > 0)
    cut, rank = cut_of(count), jnp.arange(len(weights))
    kept = (rank >= cut) & (rank < count - cut)

    def one(leaf):
        along = (-1,) + (1,) * (leaf.ndim - 1)
        in_order = jnp.sort(jnp.where((weights > 0).reshape(along), leaf, jnp.inf), axis=0)
        total = jnp.sum(jnp.where(kept.reshape(along), in_order, 0), axis=0)
        return total / jnp.maximum(jnp.sum(kept), 1)

    return jax.tree.map(one, stacked)


# name -> (the phase's own reducer, trim) -> the reducer
RULES: dict[str, Callable[[Reducer, float], Reducer]] = {
    "mean": lambda reducer, trim: reducer,
    "median": median,
    "trimmed_mean": trimmed_mean,
    "clip": clip,
}
