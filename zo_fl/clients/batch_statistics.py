"""BatchNorm's running statistics, which are state and not parameters: never perturbed, never
optimized.

A statistics tree is flax's ``batch_stats`` collection: nested dicts that end in
``{"mean": f32[channels], "var": f32[channels]}``. With GroupNorm or LayerNorm it is ``{}``.
"""

import jax
import jax.numpy as jnp

from zo_fl.core.task import Task
from zo_fl.core.types import Array, ModelState, Params
from zo_fl.models.layers import BATCH_NORM_MOMENTUM


def batch_moments(
    task: Task, params: Params, model_state: ModelState, images: Array, mask: Array
) -> ModelState:
    """Returns the first two moments of every normalised activation in one unperturbed pass.

    Args:
      task: the learning problem.
      params: weights.
      model_state: gives the structure; its values do not matter.
      images: ``u8[b, n, H, W, c]``, ``b`` batches; each is normalised by itself.
      mask: ``bool[b, n]``.

    Returns:
      A statistics tree with ``var`` replaced by the second moment, mean over the real examples of
      all batches. Second moments, unlike variances, can be averaged exactly.
    """
    zeros = jax.tree.map(jnp.zeros_like, model_state)

    def one(batch):
        images, mask = batch
        # Starting from zero, momentum leaves (1 - momentum) times this batch's statistics.
        _, moved = task.logits(params, zeros, images, mask, True)
        return to_moments(jax.tree.map(lambda leaf: leaf / (1 - BATCH_NORM_MOMENTUM), moved))

    moments = jax.lax.map(one, (images, mask))
    share = jnp.sum(mask, axis=1) / jnp.maximum(jnp.sum(mask), 1)
    return jax.tree.map(lambda leaf: jnp.tensordot(share, leaf, axes=1), moments)


def to_moments(statistics: ModelState) -> ModelState:
    """Returns the tree with ``var`` replaced by the second moment ``var + mean^2``."""
    return _per_norm(lambda s: {"mean": s["mean"], "var": s["var"] + s["mean"] ** 2}, statistics)


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
    if set(tree) == {"mean", "var"}:
        return function(tree)
    return {name: _per_norm(function, subtree) for name, subtree in tree.items()}
