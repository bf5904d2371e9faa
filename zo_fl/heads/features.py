"""What a forward-only client sums over its examples: in chunks, so that memory stays flat.

Held at once: the activations of ``microbatch`` examples, the features of ``_ROWS``, and the sums.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zo_fl.engine.fields import Block, Field
from zo_fl.engine.phase import Keeping, Problem
from zo_fl.engine.task import Task
from zo_fl.engine.types import (
    Array,
    ClientBatch,
    Examples,
    FederatedData,
    ModelState,
    Params,
    PyTree,
    ServerState,
)
from zo_fl.heads import closed_form
from zo_fl.heads.closed_form import Basis, Moments

_ROWS = 128  # feature vectors that are added to the sums at once
_ON_CLIENT = jnp.float16  # features that clients keep


class Kept(NamedTuple):
    """Examples of which their features are left.

    Attributes:
      features: ``f16`` or ``f32[n, v, d]``: of the example, and mirrored if v is 2.
      labels: ``i32[n]``.
    """

    features: Array
    labels: Array


CACHE: Block = {
    "cache": Field(
        False, "clients keep their features, in float16: one pass in all, d numbers an example"
    ),
}


class Looking(NamedTuple):
    """Fields of a config block: how a client computes features.

    Attributes:
      microbatch: examples whose activations are held at once; 0 = all.
      mirror: whether each example counts a second time, mirrored.
    """

    microbatch: int
    mirror: bool


LOOKING: Block = {
    "microbatch": Field(4, "examples whose activations are held at once; 0 = all", at_least=0),
    "mirror": Field(False, "each example counts a second time, mirrored"),
}


def size(problem: Problem) -> int:
    """Returns d, the number of features: the inputs of the model's last layer."""
    return shapes(problem.task)[0]


def shapes(task: Task) -> tuple[int, int]:
    """Returns ``(d, classes)`` of a task's last layer."""
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    return params[task.head]["kernel"].shape


def passes(looking: Looking, also: FederatedData | None = None) -> Callable[[float, float], float]:
    """Returns ``(clients, examples) -> `` forward passes.

    Args:
      looking: how.
      also: other examples of the same clients that are looked at.
    """
    more = 0.0 if also is None else float(np.asarray(also.client_sizes).mean())
    views = 2 if looking.mirror else 1
    return lambda clients, examples: clients * (examples + more) * views


def keeping(task: Task, looking: Looking, on_client: bool = False) -> Keeping:
    """Returns what makes ``Kept`` of examples, some at a time; see ``Phase.keeping``."""
    dtype = _ON_CLIENT if on_client else jnp.float32

    def keeps(params: Params, model_state: ModelState, examples: Examples) -> Kept:
        labels = task.labels(examples)
        at_once = min(looking.microbatch or len(labels), len(labels))

        def some(part):
            seen = [
                task.features(params, model_state, view, np.ones(at_once, bool))
                for view in _views(task, looking, part)
            ]
            return jnp.stack(seen, axis=1).astype(dtype)

        def cut(leaf):
            padding = [(0, -len(labels) % at_once)] + [(0, 0)] * (leaf.ndim - 1)
            return jnp.pad(leaf, padding).reshape(-1, at_once, *leaf.shape[1:])

        found = jax.lax.map(some, jax.tree.map(cut, examples))
        return Kept(found.reshape(-1, *found.shape[2:])[: len(labels)], labels)

    return Keeping(keeps, on_client)


def sum_over(
    task: Task,
    looking: Looking,
    state: ServerState,
    batch: ClientBatch,
    add: Callable[[PyTree, Array, Array], PyTree],
    zeros: PyTree,
    basis: Basis | None = None,
) -> PyTree:
    """Returns what ``add`` makes of all examples of a client, some at a time.

    Args:
      task: model and data.
      looking: how.
      state: of the server; its parameters compute the features.
      batch: the client's examples, or ``Kept``.
      add: ``(sums, features f32[m, d], labels f32[m, C] one-hot) -> sums``; rows of padding are 0
        in both.
      zeros: what it starts from.
      basis: what the features are seen on.
    """
    count = max(batch.mask.shape[0], 1)
    at_once = min(looking.microbatch or count, count)
    rows = at_once * max(1, min(_ROWS, count) // at_once)

    def pass_over(sums: PyTree, examples: Examples) -> PyTree:
        padding = -batch.mask.shape[0] % rows

        def cut(leaf):
            padded = jnp.pad(leaf, [(0, padding)] + [(0, 0)] * (leaf.ndim - 1))
            return padded.reshape(-1, rows, *leaf.shape[1:])

        def body(sums, part):
            examples, mask = part
            features = of_examples(task, at_once, state, examples, basis)
            held = jax.nn.one_hot(labels(task, examples), task.num_classes) * mask[:, None]
            # A client whose features are not finite drops out, but padding cannot make it.
            return add(sums, jnp.where(mask[:, None], features, 0.0), held), None

        return jax.lax.scan(body, sums, jax.tree.map(cut, (examples, batch.mask)))[0]

    sums = zeros
    for view in _views(task, looking, batch.examples):
        sums = pass_over(sums, view)
    return sums


def of_examples(
    task: Task, at_once: int, state: ServerState, examples: Examples, basis: Basis | None
) -> Array:
    """Returns the features ``f32[m, d]`` of some examples, ``f32[m, k]`` on a basis.

    Args:
      task: model and data.
      at_once: examples whose activations are held at once; divides m.
      state: of the server.
      examples: leaves ``[m, ...]``, or ``Kept`` of one view.
      basis: what the features are seen on.
    """

    def seen(features):
        return features if basis is None else closed_form.seen_on(basis, features)

    if isinstance(examples, Kept):
        return seen(examples.features[:, 0].astype(jnp.float32))

    def some(examples):
        return seen(
            task.features(state.params, state.model_state, examples, np.ones(at_once, bool))
        )

    parts = jax.tree.map(lambda leaf: leaf.reshape(-1, at_once, *leaf.shape[1:]), examples)
    features = jax.lax.map(some, parts)
    return features.reshape(-1, features.shape[-1])


def _views(task: Task, looking: Looking, examples: Examples) -> list[Examples]:
    """Returns the examples, and mirrored ones where these count as well."""
    if isinstance(examples, Kept):
        count = examples.features.shape[1]
        return [examples._replace(features=examples.features[:, i : i + 1]) for i in range(count)]
    return [examples, task.mirror(examples)] if looking.mirror else [examples]


def labels(task: Task, examples: Examples) -> Array:
    """Returns the classes ``i32[n]`` of examples, or of ``Kept``."""
    return examples.labels if isinstance(examples, Kept) else task.labels(examples)


def relabel(task: Task, examples: Examples, others: Array) -> Examples:
    """Returns examples, or ``Kept``, with other classes ``i32[n]``."""
    if isinstance(examples, Kept):
        return examples._replace(labels=others)
    return task.relabel(examples, others)


def moments(
    task: Task,
    looking: Looking,
    state: ServerState,
    batch: ClientBatch,
    basis: Basis | None = None,
    bounded: Callable[[Array], Array] = lambda features: features,
) -> Moments:
    """Returns the sums that ridge regression needs, over all examples of a client.

    Half of the products of a Gram matrix are left out, because it is symmetric.

    Args:
      task: model and data.
      looking: how.
      state: of the server.
      batch: the client's examples, or ``Kept``.
      basis: what the features are seen on.
      bounded: ``f32[m, d] -> f32[m, d]``, what features are replaced by, one example at a time.
    """
    dim, classes = shapes(task)
    dim = dim if basis is None else basis.directions.shape[1]

    def add(sums, features, labels):
        gram, class_sums, class_counts = sums
        features = bounded(features)
        gram = jax.tree.map(jnp.add, gram, closed_form.gram_rows(features))
        class_sums = class_sums + closed_form.full_product(features.T, labels)
        return gram, class_sums, class_counts + labels.sum(0)

    gram = jax.eval_shape(closed_form.gram_rows, jax.ShapeDtypeStruct((1, dim), jnp.float32))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), gram)
    start = zeros, jnp.zeros((dim, classes)), jnp.zeros(classes)
    blocks, *rest = sum_over(task, looking, state, batch, add, start, basis)
    return Moments(closed_form.pack_rows(blocks, dim), *rest)


def class_sums(
    task: Task,
    looking: Looking,
    state: ServerState,
    batch: ClientBatch,
    basis: Basis | None = None,
) -> tuple[Array, Array]:
    """Returns ``(f32[d, C], f32[C])``: the sum of each class's features, and its examples."""
    dim, classes = shapes(task)
    dim = dim if basis is None else basis.directions.shape[1]

    def add(sums, features, labels):
        return sums[0] + closed_form.full_product(features.T, labels), sums[1] + labels.sum(0)

    start = jnp.zeros((dim, classes)), jnp.zeros(classes)
    return sum_over(task, looking, state, batch, add, start, basis)


def weight(batch: ClientBatch, *sums: PyTree) -> Array:
    """Returns a client's weight ``f32[]``: its examples, or 0 if a sum is not finite."""
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(sums)]
    return jnp.where(jnp.all(jnp.stack(finite)), jnp.sum(batch.mask).astype(jnp.float32), 0.0)
