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
from zo_fl.engine.types import Array, Examples, ModelState, Params, Task

BATCH_NORM_MOMENTUM = 0.9  # of running statistics, as flax and PyTorch (0.1 there) have it

POLICIES = ("frozen", "batch", "batch_sync", "recalibrate")
OF_THE_BATCH = ("batch", "batch_sync")  # losses are computed with the client's own statistics
UPLOADED = ("batch_sync", "recalibrate")


def of_client(
    task: Task, policy: str, state: ServerState, examples: Examples, mask: Array
) -> ModelState:
    """Returns the statistics that a client uploads, ``{}`` if its policy sends none.

    All of its examples are leaves ``[b, n, ...]``, and the mask is ``bool[b, n]``.
    """
    if policy not in UPLOADED:
        return {}
    moments = batch_moments(task, state.params, state.model_state, examples, mask)
    return moments if policy == "recalibrate" else move(state.model_state, from_moments(moments))


def of_server(policy: str) -> Callable[[ModelState, ModelState], ModelState]:
    """Returns ``(running, mean of the clients') -> running`` statistics, see ``Server``."""
    if policy == "batch_sync":
        return lambda model_state, uploaded: uploaded
    if policy == "recalibrate":
        return lambda model_state, uploaded: from_moments(uploaded)
    return lambda model_state, uploaded: model_state


def batch_moments(
    task: Task, params: Params, model_state: ModelState, examples: Examples, mask: Array
) -> ModelState:
    """Returns the first two moments of every normalised activation in one unperturbed pass.

    Args:
      task: the learning problem.
      params: weights.
      model_state: gives the structure; its values do not matter.
      examples: leaves ``[b, n, ...]``, ``b`` batches; each is normalised by itself.
      mask: ``bool[b, n]``.

    Returns:
      A statistics tree, mean over the real examples of all batches, with ``var`` replaced by the
      second moment ``var + mean^2``: it can be averaged exactly.
    """
    zeros = jax.tree.map(jnp.zeros_like, model_state)

    def one(batch):
        # Starting from zero, momentum leaves (1 - momentum) times this batch's statistics.
        _, moved = task.logits(params, zeros, *batch, True)
        own = jax.tree.map(lambda leaf: leaf / (1 - BATCH_NORM_MOMENTUM), moved)
        return _per_norm(lambda s: {"mean": s["mean"], "var": s["var"] + s["mean"] ** 2}, own)

    moments = jax.lax.map(one, (examples, mask))
    share = jnp.sum(mask, axis=1) / jnp.maximum(jnp.sum(mask), 1)
    return jax.tree.map(lambda leaf: jnp.tensordot(share, leaf, axes=1), moments)


def from_moments(moments: ModelState) -> ModelState:
    """Returns the tree with the second moment replaced by ``var``, never negative."""
    return _per_norm(
        lambda s: {"mean": s["mean"], "var": jnp.maximum(s["var"] - s["mean"] ** 2, 0.0)}, moments
    )


def move(running: ModelState, batch: ModelState) -> ModelState:
    """Returns running statistics, moved towards one batch's by 1 - momentum."""
    return jax.tree.map(
        lambda r, b: BATCH_NORM_MOMENTUM * r + (1 - BATCH_NORM_MOMENTUM) * b, running, batch
    )


def _per_norm(function, tree):
    return jax.tree.map(function, tree, is_leaf=lambda s: set(s) == {"mean", "var"})
