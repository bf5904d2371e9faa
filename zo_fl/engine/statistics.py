"""BatchNorm's running statistics, which are state and not parameters: never perturbed or optimized.

BatchNorm in a pass that has no gradient is an open choice in the paper; ``bn_policy`` makes it
explicit. Perturbed passes never touch running statistics, whatever the policy.

    policy        losses are computed with       running statistics
    frozen        the running statistics         stay as they were at the pivot
    batch         the client's batch statistics  stay as they were at the pivot
    batch_sync    the client's batch statistics  one unperturbed pass a round moves them by the
                                                 usual momentum; n_k-weighted mean of the clients'
    recalibrate   the running statistics         replaced every round by the pooled moments of all
                                                 clients' unperturbed passes

The last two upload statistics beside the scalars, and are billed for them. In these passes a
client's activations are normalised by its own batch: beyond the first normalised layer,
``recalibrate`` does not pool what a pass over all clients' data would give.

A statistics tree is flax's ``batch_stats`` collection: nested dicts that end in
``{"mean": f32[channels], "var": f32[channels]}``. With GroupNorm or LayerNorm it is ``{}``.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from zo_fl.engine.algorithm import ServerState
from zo_fl.engine.types import Array, Examples, ModelState, Task

BATCH_NORM_MOMENTUM = 0.9  # of running statistics, as flax and PyTorch (0.1 there) have it

POLICIES = ("frozen", "batch", "batch_sync", "recalibrate")
OF_THE_BATCH = ("batch", "batch_sync")  # losses are computed with the client's own statistics
UPLOADED = ("batch_sync", "recalibrate")


def of_client(
    task: Task, policy: str, state: ServerState, examples: Examples, mask: Array, key: Array
) -> ModelState:
    """Returns the statistics that a client uploads, ``{}`` if its policy sends none.

    All of its examples are leaves ``[b, n, ...]``, and the mask is ``bool[b, n]``.
    """
    if policy not in UPLOADED:
        return {}
    own = pooled(*batch_statistics(task, state, examples, mask, key))
    return (
        around(state.model_state, own) if policy == "recalibrate" else move(state.model_state, own)
    )


def of_server(policy: str) -> Callable[[ModelState, ModelState], ModelState]:
    """Returns ``(running, mean of the clients') -> running`` statistics, see ``Server``."""
    if policy == "batch_sync":
        return lambda model_state, uploaded: uploaded
    if policy == "recalibrate":
        return from_around
    return lambda model_state, uploaded: model_state


def batch_statistics(
    task: Task, state: ServerState, examples: Examples, mask: Array, key: Array | None = None
) -> tuple[ModelState, Array]:
    """Returns the statistics of every normalised activation in one unperturbed pass a batch.

    Args:
      task: the learning problem.
      state: has the weights.
      examples: leaves ``[b, n, ...]``, ``b`` batches; each is normalised by itself.
      mask: ``bool[b, n]``.
      key: for modules that draw.

    Returns:
      A statistics tree with leaves ``[b, channels]``, and the real examples ``f32[b]`` of each.
    """
    zeros = jax.tree.map(jnp.zeros_like, state.model_state)

    def one(batch):
        # Starting from zero, momentum leaves (1 - momentum) times this batch's statistics.
        _, moved = task.logits(state.params, zeros, *batch, True, key)
        return jax.tree.map(lambda leaf: leaf / (1 - BATCH_NORM_MOMENTUM), moved)

    return jax.lax.map(one, (examples, mask)), jnp.sum(mask, axis=1, dtype=jnp.float32)


def pooled(statistics: ModelState, counts: Array) -> ModelState:
    """Returns the statistics of all examples of batches, from those of ``batch_statistics``."""
    shares = counts / jnp.maximum(jnp.sum(counts), 1)

    def one(s):
        mean = jnp.tensordot(shares, s["mean"], axes=1)
        spread = s["var"] + (s["mean"] - mean[None]) ** 2
        return {"mean": mean, "var": jnp.tensordot(shares, spread, axes=1)}

    return _per_norm(one, statistics)


def around(running: ModelState, statistics: ModelState) -> ModelState:
    """Returns statistics with ``var`` replaced by the mean square around the running mean.

    It can be averaged exactly, as a variance cannot; around 0, a mean of 100 deviations would take
    four of its digits.
    """
    return _per_norm(
        lambda s, r: s | {"var": s["var"] + (s["mean"] - r["mean"]) ** 2}, statistics, running
    )


def from_around(running: ModelState, averaged: ModelState) -> ModelState:
    """Returns the statistics whose averaged ``around`` is given; variances are never negative."""
    return _per_norm(
        lambda s, r: s | {"var": jnp.maximum(s["var"] - (s["mean"] - r["mean"]) ** 2, 0.0)},
        averaged,
        running,
    )


def move(running: ModelState, batch: ModelState) -> ModelState:
    """Returns running statistics, moved towards one batch's by 1 - momentum."""
    return jax.tree.map(
        lambda r, b: BATCH_NORM_MOMENTUM * r + (1 - BATCH_NORM_MOMENTUM) * b, running, batch
    )


def _per_norm(function, *trees):
    return jax.tree.map(function, *trees, is_leaf=lambda s: set(s) == {"mean", "var"})
