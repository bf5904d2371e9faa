"""Features and a client's sums over them, by forward passes in chunks: memory stays flat.

The features of an example are the input of the model's last layer. A pass holds the activations of
``microbatch`` examples, the features of ``_ROWS`` examples, and the sums.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zo_fl.engine import cohorts, trees
from zo_fl.engine import task as tasks
from zo_fl.engine.algorithm import ClientBatch, Keeping, Problem, ServerState
from zo_fl.engine.fields import Field
from zo_fl.engine.task import Task
from zo_fl.engine.types import Array, Examples, FederatedData, ModelState, Params, PyTree
from zo_fl.heads import closed_form
from zo_fl.heads.closed_form import MaybeBasis, Moments, project

_ROWS = 128  # feature vectors added to the sums at once
_ON_CLIENT = jnp.float16  # dtype of features that clients keep

MICROBATCH = Field(4, "examples whose activations are held at once; 0 = all", at_least=0)
CACHE = Field(False, "reuse of features that clients keep in float16: one pass in all")


class Extractor(NamedTuple):
    """The computation of features by clients.

    Attributes:
      task: the learning problem.
      dim: d, features of an example.
      microbatch: examples whose activations are held at once; 0 = all.
    """

    task: Task
    dim: int
    microbatch: int

    @property
    def num_classes(self) -> int:
        """C."""
        return self.task.num_classes


def extractor(problem: Problem, microbatch: int) -> Extractor:
    """Returns how the clients of a problem compute features."""
    task = problem.task
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    return Extractor(task, params[task.head]["kernel"].shape[0], microbatch)


def passes(
    share: float = 1.0, also: FederatedData | None = None
) -> Callable[[float, float], float]:
    """Returns ``(clients, examples) -> forward passes`` of a round.

    Args:
      share: passes over each example in a round.
      also: other examples of the same clients, over which they pass as well.
    """
    more = 0.0 if also is None else float(np.asarray(also.client_sizes).mean())
    return lambda clients, examples: clients * (examples + more) * share


def keeping(look: Extractor, on_client: bool = False) -> Keeping:
    """Returns how features are computed once and kept, as examples ``{"kept", "label"}``.

    ``kept`` is ``f16[n, d]`` on clients, and ``f32[n, d]`` where the simulation alone keeps it.
    """
    task, dtype = look.task, _ON_CLIENT if on_client else jnp.float32

    def compute(params: Params, model_state: ModelState, examples: Examples) -> Examples:
        labels = task.labels(examples)
        at_once = min(look.microbatch or len(labels), len(labels))

        def some(part):
            return task.features(params, model_state, part, np.ones(at_once, bool)).astype(dtype)

        found = jax.lax.map(some, cohorts.batched(examples, at_once))
        return {"kept": found.reshape(-1, found.shape[-1])[: len(labels)], "label": labels}

    return Keeping(compute, on_client)


def sum_over(
    look: Extractor,
    state: ServerState,
    batch: ClientBatch,
    add: Callable[[PyTree, Array, Array], PyTree],
    zeros: PyTree,
    basis: MaybeBasis = (),
) -> PyTree:
    """Returns the sums that ``add`` accumulates over a client's examples, some at a time.

    Args:
      look: how features are computed.
      state: the server's; its parameters compute the features.
      batch: the client's examples, or kept features.
      add: ``(sums, features f32[m, k], labels f32[m, C] one-hot) -> sums``; rows of padding are 0
        in both.
      zeros: the sums to start from.
      basis: of a sketch, on which features are projected, or ``()``.
    """
    count = max(batch.mask.shape[0], 1)
    at_once = min(look.microbatch or count, count)
    rows = at_once * max(1, min(_ROWS, count) // at_once)

    def body(sums, part):
        examples, mask = part
        features = _of_examples(look, at_once, state, examples, basis)
        held = jax.nn.one_hot(look.task.labels(examples), look.num_classes) * mask[:, None]
        # A client whose features are not finite drops out, but padding cannot make it.
        return add(sums, jnp.where(mask[:, None], features, 0.0), held), None

    parts = cohorts.batched((batch.examples, batch.mask), rows)
    return jax.lax.scan(body, zeros, parts)[0]


def _of_examples(
    look: Extractor, at_once: int, state: ServerState, examples: Examples, basis: MaybeBasis
) -> Array:
    """Returns the features ``f32[m, k]`` of some examples, computed ``at_once`` at a time."""
    if isinstance(examples, dict) and "kept" in examples:
        return project(basis, examples["kept"].astype(jnp.float32))

    def some(part):
        mask = np.ones(at_once, bool)
        return project(basis, look.task.features(state.params, state.model_state, part, mask))

    features = jax.lax.map(some, cohorts.batched(examples, at_once))
    return features.reshape(-1, features.shape[-1])


def sums(
    look: Extractor,
    state: ServerState,
    batch: ClientBatch,
    gram: Callable[[Array], PyTree] = lambda features: (),
    basis: MaybeBasis = (),
    bounded: Callable[[Array], Array] = lambda features: features,
) -> Moments:
    """Returns a client's sums over all its examples.

    Args:
      look: how features are computed.
      state: the server's.
      batch: the client's examples, or kept features.
      gram: ``f32[m, k] -> second moments`` of some features, to be added up.
      basis: of a sketch, on which features are projected, or ``()``.
      bounded: ``f32[m, k] -> f32[m, k]``, applied to the features of each example by itself.
    """

    def add(before, features, labels):
        features = bounded(features)
        second = jax.tree.map(jnp.add, before.gram, gram(features))
        class_sums = before.class_sums + closed_form.product(features.T, labels)
        return Moments(second, class_sums, before.class_counts + labels.sum(0))

    dim = basis.directions.shape[1] if basis else look.dim
    second = jax.eval_shape(gram, jax.ShapeDtypeStruct((1, dim), jnp.float32))
    class_sums, counts = jnp.zeros((dim, look.num_classes)), jnp.zeros(look.num_classes)
    zeros = Moments(trees.zeros(second), class_sums, counts)
    return sum_over(look, state, batch, add, zeros, basis)


def moments(look: Extractor, state: ServerState, batch: ClientBatch, *options) -> Moments:
    """Returns sums with the packed Gram matrix, as ridge regression needs; see ``sums``."""
    found = sums(look, state, batch, closed_form.gram_blocks, *options)
    return found._replace(gram=closed_form.pack(found.gram))


def class_counts(look: Extractor, batch: ClientBatch) -> Array:
    """Returns ``f32[C]``, a client's examples of each class."""
    return tasks.class_counts(look.task.labels(batch.examples), batch.mask, look.num_classes)


def weight(batch: ClientBatch, *sums: PyTree) -> Array:
    """Returns a client's weight ``f32[]``: its examples, or 0 if a sum is not finite."""
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(sums)]
    return jnp.where(jnp.all(jnp.stack(finite)), jnp.sum(batch.mask).astype(jnp.float32), 0.0)
