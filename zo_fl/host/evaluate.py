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
from zo_fl.core.types import Array, Examples
from zo_fl.data.federated import Federation
from zo_fl.host import processes


class EvaluationSet(NamedTuple):
    """Examples cut into ``b`` batches of ``B``, padded; each batch is spread over the devices.

    Attributes:
      examples: leaves ``[b, B, ...]``.
      mask: ``bool[b, B]``, False for padding.
    """

    examples: Examples
    mask: Array | np.ndarray


def make_set(examples: Examples, batch_size: int, mesh: Mesh) -> EvaluationSet:
    """Returns the set on the devices.

    Args:
      examples: NumPy arrays ``[M, ...]``.
      batch_size: examples a batch; rounded up to a multiple of the mesh's size.
      mesh: devices along ``"clients"``.
    """
    count = len(jax.tree.leaves(examples)[0])
    batch_size = -(-min(batch_size, max(count, 1)) // mesh.size) * mesh.size
    whole = EvaluationSet(examples, np.ones(count, bool))

    def cut(array):
        missing = -len(array) % batch_size
        padded = np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
        return padded.reshape(-1, batch_size, *array.shape[1:])

    sharding = NamedSharding(mesh, P(None, AXIS))
    return processes.place(jax.tree.map(lambda leaf: cut(np.asarray(leaf)), whole), sharding)


def make_sets(federation: Federation, batch_size: int, mesh: Mesh) -> dict[str, EvaluationSet]:
    """Returns the official test split, ``test``, and all clients' validation examples, ``val``."""
    dataset, rows = federation.dataset, federation.val_indices
    val = jax.tree.map(lambda leaf: leaf[rows], dataset.train)
    return {
        "test": make_set(dataset.test, batch_size, mesh),
        "val": make_set(val, batch_size, mesh),
    }


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
            logits, _ = task.logits(params, model_state, batch.examples, batch.mask, False)
            losses = task.loss_of_logits(logits, batch.examples)
            correct = jnp.argmax(logits, axis=-1) == task.labels(batch.examples)
            new = jnp.stack([jnp.where(batch.mask, losses, 0).sum(), (correct & batch.mask).sum()])
            return totals + new, None

        totals, _ = jax.lax.scan(body, jnp.zeros(2), examples)
        loss, accuracy = totals / jnp.sum(examples.mask)
        return {"loss": loss, "accuracy": accuracy}

    return jax.jit(evaluate, compiler_options=compiler_options)
