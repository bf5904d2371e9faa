"""Losses for clients that lack labels: cross-entropy, or one that spares absent classes.

    ce       cross-entropy
    masked   logits of classes that the client does not hold are replaced by 0 (not minus infinity):
             they stay in the denominator, and get no gradient
    wsm      weighted softmax: log of the client's share of each class is added to its logits, so
             that absent classes play no part, and rare ones are pushed down less

A client whose few labels are all that it sees otherwise learns that the others do not exist.
Evaluation is by plain logits.

Sources: Diao et al. 2021 (arXiv 2010.01264) and its code for ``masked``; Legate, Caccia, Belilovsky
(arXiv 2304.05260) and its code for ``wsm``.
"""

from collections.abc import Callable

import jax.numpy as jnp

from zo_fl.engine.algorithm import ClientBatch
from zo_fl.engine.fields import Field
from zo_fl.engine.types import Array, ModelState, Task

_ABSENT = -1e9  # added to logits


def of_client(task: Task, loss: str, batch: ClientBatch) -> Callable[..., tuple[Array, ModelState]]:
    """Returns the losses that a client trains on, called as ``Task.losses``.

    Args:
      task: the learning problem.
      loss: one of ``LOSSES``.
      batch: all of the client's examples: their labels decide.
    """
    adjust = LOSSES[loss]
    if adjust is None:
        return task.losses
    counts = class_counts(task.labels(batch.examples), batch.mask, task.num_classes)

    def losses(params, model_state, examples, mask, train, key=None):
        logits, model_state = task.logits(params, model_state, examples, mask, train, key)
        return task.loss_of_logits(adjust(logits, counts), examples), model_state

    return losses


def class_counts(labels: Array, mask: Array, num_classes: int) -> Array:
    """Returns ``f32[classes]``, the real examples of each class, of ``i32[n]`` and ``bool[n]``."""
    is_label = labels[:, None] == jnp.arange(num_classes)[None]
    return jnp.sum(is_label & mask[:, None], axis=0).astype(jnp.float32)


def _weighted(logits: Array, counts: Array) -> Array:
    shares = counts / jnp.maximum(counts.sum(), 1)
    return logits + jnp.where(counts > 0, jnp.log(jnp.maximum(shares, 1e-30)), _ABSENT)[None]


# name -> what becomes of logits f32[n, C], given the client's examples of each class f32[C]
LOSSES: dict[str, Callable[[Array, Array], Array] | None] = {
    "ce": None,
    "masked": lambda logits, counts: jnp.where(counts[None] > 0, logits, 0.0),
    "wsm": _weighted,
}

FIELD = Field("wsm", "loss of a client that lacks labels", tuple(LOSSES))
