"""Evaluation: mean loss and accuracy over a fixed set of examples, as one jitted program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from zo_fl.core.engine import AXIS
from zo_fl.core.task import Task
from zo_fl.core.types import Array
from zo_fl.host import processes


class EvaluationSet(NamedTuple):
    """Examples cut into ``b`` batches of ``B``, padded; each batch is spread over the devices.

    Attributes:
      images: ``u8[b, B, H, W, c]``.
      labels: ``i32[b, B]``.
      mask: ``bool[b, B]``, False for padding.
    """

    images: Array
    labels: Array
    mask: Array


def make_set(images: np.ndarray, labels: np.ndarray, batch_size: int, mesh: Mesh) -> EvaluationSet:
    """Returns the set on the devices.

    Args:
      images: ``u8[M, H, W, c]``.
      labels: ``i32[M]``.
      batch_size: examples a batch; rounded up to a multiple of the mesh's size.
      mesh: devices along ``"clients"``.
    """
    batch_size = -(-min(batch_size, max(len(labels), 1)) // mesh.size) * mesh.size
    mask = np.ones(len(labels), bool)

    def cut(array):
        missing = -len(array) % batch_size
        padded = np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
        return padded.reshape(-1, batch_size, *array.shape[1:])

    sharding = NamedSharding(mesh, P(None, AXIS))
    return EvaluationSet(
        *(processes.place(cut(np.asarray(a)), sharding) for a in (images, labels, mask))
    )


def make_evaluate(
    task: Task, compiler_options: dict[str, Any] | None = None
) -> Callable[..., dict[str, Array]]:
    """Returns jitted ``(params, model_state, evaluation_set) -> {"loss": f32[], "accuracy":
    f32[]}``.

    Running statistics are used, whatever the policy of the training phase. An empty set gives NaN.

    Args:
      task: the learning problem, at the precision of the evaluation.
      compiler_options: see ``jax.jit``; an engine has those of its devices.
    """

    def evaluate(params, model_state, examples: EvaluationSet):
        def body(totals, batch: EvaluationSet):
            logits, _ = task.logits(params, model_state, batch.images, batch.mask, False)
            losses = task.cross_entropy(logits, batch.labels)
            correct = jnp.argmax(logits, axis=-1) == batch.labels
            new = jnp.stack([jnp.where(batch.mask, losses, 0).sum(), (correct & batch.mask).sum()])
            return totals + new, None

        totals, _ = jax.lax.scan(body, jnp.zeros(2), examples)
        loss, accuracy = totals / jnp.sum(examples.mask)
        return {"loss": loss, "accuracy": accuracy}

    return jax.jit(evaluate, compiler_options=compiler_options)
