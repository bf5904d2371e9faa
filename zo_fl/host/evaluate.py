"""Mean loss and accuracy of a model over a fixed set of examples, as one jitted program."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from zo_fl.data.federated import Federation
from zo_fl.engine import activations, cohorts
from zo_fl.engine.algorithm import TIERS
from zo_fl.engine.layout import AXIS, Engine
from zo_fl.engine.types import Array, Examples, Task
from zo_fl.host import processes


class EvaluationSet(NamedTuple):
    """Examples cut into batches of ``B``, padded; each batch is spread over the devices.

    Attributes:
      examples: leaves ``[b, B, ...]``.
      mask: ``bool[b, B]``, False for padding.
      num_batches: ``i32[]`` batches up to the last example; later ones are skipped.
      size: ``i32[]`` examples.
      features: ``f32[b, B, d]`` by ``make_seen``, while only the last layer changes; or ``()``.
    """

    examples: Examples
    mask: Array | np.ndarray
    num_batches: Array | np.ndarray
    size: Array | np.ndarray
    features: Array | tuple[()] = ()


def make_set(
    examples: Examples, batch_size: int, engine: Engine, capacity: int | None = None
) -> EvaluationSet:
    """Returns the set on the engine's devices.

    Args:
      examples: NumPy arrays ``[M, ...]``.
      batch_size: rounded up to a multiple of the number of devices, or cores.
      engine: of the devices.
      capacity: examples that there is room for, at least M; sets of equal room share a program.
    """
    count = _count(examples)
    room = max(count if capacity is None else capacity, 1)
    devices = engine.wide.mesh.size
    batch_size = -(-min(batch_size, room) // devices) * devices
    length = -(-room // batch_size) * batch_size

    def cut(array):
        array = np.asarray(array)
        missing = np.zeros((length - count, *array.shape[1:]), array.dtype)
        return np.concatenate([array, missing]).reshape(-1, batch_size, *array.shape[1:])

    whole = jax.tree.map(cut, (examples, np.ones(count, bool)))
    batches, mask = processes.place(whole, engine.sharding(P(None, AXIS)))
    num_batches = np.array(-(-count // batch_size), np.int32)
    return EvaluationSet(batches, mask, num_batches, np.array(count, np.int32))


def make_sets(
    federation: Federation, batch_size: int, engine: Engine, tiers: Iterable[str] = ()
) -> dict[str, EvaluationSet]:
    """Returns the official test split, ``test``, and clients' validation examples.

    ``val`` are those of all clients. ``val high`` and the like are those of the clients of some
    tiers, keys of ``TIERS``. ``test`` and ``val`` have the shapes of the larger one, so that the
    model is compiled once for both.
    """
    validation, train = federation.validation, federation.dataset.train

    def rows_of(rows: np.ndarray) -> Examples:
        return jax.tree.map(lambda leaf: leaf[rows], train)

    whole = {"test": federation.dataset.test, "val": rows_of(federation.val_indices)}
    capacity = max(map(_count, whole.values()))
    sets = {name: make_set(one, batch_size, engine, capacity) for name, one in whole.items()}
    clients, sizes = np.asarray(validation.client_indices), np.asarray(validation.client_sizes)
    held = np.arange(clients.shape[1]) < sizes[:, None]
    for name in tiers:
        of_tiers = np.isin(np.asarray(validation.client_tiers), TIERS[name])
        rows = np.sort(clients[held & of_tiers[:, None]])
        sets[f"val {name}"] = make_set(rows_of(rows), batch_size, engine)
    return sets


def _count(examples: Examples) -> int:
    return len(jax.tree.leaves(examples)[0])


def make_evaluate(
    task: Task, compiler_options: dict[str, Any] | None = None
) -> Callable[..., dict[str, Array]]:
    """Returns jitted ``(params, model_state, set) -> {"loss": f32[], "accuracy": f32[]}``.

    It uses running statistics, whatever the training phase does. An empty set gives NaN.

    Args:
      task: the learning problem, at the precision of the evaluation.
      compiler_options: see ``jax.jit`` and ``Engine``.
    """

    def evaluate(params, model_state, examples: EvaluationSet):
        def body(i, totals):
            batch, mask = jax.tree.map(lambda leaf: leaf[i], (examples.examples, examples.mask))
            if isinstance(examples.features, tuple):
                logits, _ = task.logits(params, model_state, batch, mask, False)
            else:
                head = params[task.head]
                logits = jnp.matmul(examples.features[i], head["kernel"], precision="highest")
                logits += head["bias"][None]
            losses = task.loss_of_logits(logits, batch)
            correct = jnp.argmax(logits, axis=-1) == task.labels(batch)
            return totals + jnp.stack([jnp.where(mask, losses, 0).sum(), (correct & mask).sum()])

        totals = jax.lax.fori_loop(0, examples.num_batches, body, jnp.zeros(2))
        loss, accuracy = totals / jnp.sum(examples.mask)
        return {"loss": loss, "accuracy": accuracy}

    return jax.jit(evaluate, compiler_options=compiler_options)


def make_seen(task: Task, at_once: int = 0) -> Callable[..., Array]:
    """Returns ``(params, model_state, (examples, mask)) -> f32[b, B, d]``: a head's inputs.

    Leaves are ``[b, B, ...]``. ``at_once`` examples are looked at together; 0 = a batch.
    """

    def seen(params, model_state, batches):
        shape = batches[1].shape
        rows = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), batches)

        def some(part):
            return activations.features(task, params, model_state, *part)

        found = jax.lax.map(some, cohorts.batched(rows, at_once or shape[1]))
        found = found.reshape(-1, found.shape[-1])[: math.prod(shape)]
        return found.reshape(*shape, -1)

    return seen
