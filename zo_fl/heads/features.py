"""Features and a client's sums over them, by forward passes in chunks: memory stays flat.

The features of an example are the input of the model's last layer. A pass holds the activations of
``microbatch`` examples, the features of ``_ROWS`` examples, and the sums.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zo_fl.engine import activations, cohorts, losses, trees
from zo_fl.engine.algorithm import ClientBatch, ClientResult, Keeping, Problem, ServerState
from zo_fl.engine.fields import ConfigError, Field, FieldError
from zo_fl.engine.types import Array, Examples, ModelState, Params, PyTree, Task
from zo_fl.heads import closed_form
from zo_fl.heads.closed_form import Basis, MaybeBasis, Moments

_ROWS = 128  # feature vectors added to the sums at once
_ON_CLIENT = jnp.float16  # dtype of features that clients keep

MICROBATCH = Field(4, "examples whose activations are held at once", at_least=1, zero="all")
CACHE = Field(False, "reuse of features that clients keep in float16: one pass in all")


class Extractor(NamedTuple):
    """The computation of features by clients.

    Attributes:
      dim: d, features of an example.
      microbatch: examples whose activations are held at once; 0 = all.
      sketch: k, principal directions that replace the features; 0 = none.
      ragged: whether clients have unequal numbers of examples.
    """

    task: Task
    dim: int
    microbatch: int
    sketch: int
    ragged: bool = False

    @property
    def size(self) -> int:
        """Numbers of an example: k with a sketch, d without."""
        return self.sketch or self.dim


def make_extractor(problem: Problem, microbatch: int, sketch: int = 0) -> Extractor:
    """Returns the extractor of a problem's clients.

    Raises:
      ConfigError: the model has no last layer of the name that it should have, or the layer's
        outputs are not the logits.
      FieldError: the sketch has more directions than the model has features.
    """
    task = problem.task
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    layer = params.get(task.head, {})
    if not {"kernel", "bias"} <= layer.keys() or layer["kernel"].ndim != 2:
        raise ConfigError(
            f"the model {type(task.module).__name__} has no Dense layer {task.head!r} with a bias, "
            f"which this method sets; there are: {', '.join(params)}; name the last layer so, or "
            "set the model's attribute last_layer, or change config.algorithm"
        )
    if not type(task.module).__module__.startswith("zo_fl.") and not _gives_logits(task):
        raise ConfigError(
            f"the model {type(task.module).__name__} does something to the outputs of its layer "
            f"{task.head!r}, which this method takes for the logits; return them as they are, or "
            "change config.algorithm"
        )
    dim = params[task.head]["kernel"].shape[0]
    if sketch > dim:
        raise FieldError(
            "sketch",
            f"={sketch} is more than the model's {dim} features; allowed: 1 to {dim}, or all",
        )
    return Extractor(task, dim, microbatch, sketch, cohorts.is_ragged(problem))


def _gives_logits(task: Task) -> bool:
    """Returns whether a model's logits are its last layer's outputs, up to a constant."""

    @jax.jit
    def both():
        params, model_state = task.init(jax.random.key(0))
        # Of the layer's outputs for a blank example, which may be 0, those of a bias are known.
        head = params[task.head] | {"bias": jnp.arange(float(task.num_classes))}
        model = params | {task.head: head}, model_state, task.blank(), np.ones(1, bool)
        own = activations.features(task, *model) @ head["kernel"] + head["bias"][None]
        return own, task.logits(*model, False)[0]

    with jax.ensure_compile_time_eval():
        own, logits = map(jax.nn.log_softmax, both())
        return own.shape == logits.shape and bool(jnp.allclose(own, logits, rtol=0.05, atol=0.05))


def passes(share: float = 1.0, more: float = 0.0) -> Callable[[float, float], float]:
    """Returns ``(clients, examples) -> forward passes`` of a round.

    A client passes over each of its examples ``share`` times, and over ``more`` examples beside.
    """
    return lambda clients, examples: clients * (examples + more) * share


def keeping(extractor: Extractor, on_client: bool = False) -> Keeping:
    """Returns the computation of features to be kept, as examples ``{"kept", "label"}``.

    ``kept`` is ``f16[n, d]`` on clients, and ``f32[n, d]`` where the simulation alone keeps it.
    """
    task, dtype = extractor.task, _ON_CLIENT if on_client else jnp.float32

    def compute(params: Params, model_state: ModelState, examples: Examples) -> Examples:
        labels = task.labels(examples)
        at_once = min(extractor.microbatch or len(labels), len(labels))
        rounded = lambda seen: seen.astype(dtype)  # noqa: E731
        found = _features(task, (params, model_state), examples, at_once, rounded)
        return {"kept": found[: len(labels)], "label": labels}

    return Keeping(compute, on_client)


def around_blank(extractor: Extractor, state: ServerState) -> Basis:
    """Returns features from those of a blank example on: every client and the server know these.

    Squares of features that lie 100 deviations from 0 would lose four more of their digits.
    """
    model, task = (state.params, state.model_state), extractor.task
    return Basis(activations.features(task, *model, task.blank(), np.ones(1, bool))[0])


def sum_over(
    extractor: Extractor,
    state: ServerState,
    batch: ClientBatch,
    add: Callable[[PyTree, Array, Array], PyTree],
    zeros: PyTree,
    basis: MaybeBasis = (),
) -> PyTree:
    """Returns the sums that ``add`` accumulates over a client's examples, some at a time.

    Args:
      extractor: computes features, by the parameters in ``state``.
      state: the server's.
      batch: the client's examples, or kept features.
      add: ``(sums, features f32[m, k], labels f32[m, C] one-hot) -> sums``; rows of padding are 0
        in both.
      zeros: the sums to start from.
      basis: projects the features, or ``()``.
    """
    look, parts = _in_parts(extractor, state, batch, basis)

    def body(sums, part):
        return add(sums, *look(part)), None

    def body_if_any(sums, part):
        return cohorts.if_any(part[1], lambda: body(sums, part), lambda: (sums, None))

    return jax.lax.scan(body_if_any if extractor.ragged else body, zeros, parts)[0]


def rows(
    extractor: Extractor, state: ServerState, batch: ClientBatch, basis: MaybeBasis = ()
) -> tuple[Array, Array]:
    """Returns the features ``f32[n, k]`` and labels ``f32[n, C]`` that ``sum_over`` adds up."""
    found = jax.lax.map(*_in_parts(extractor, state, batch, basis))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1])[: len(batch.mask)], found)


def _in_parts(
    extractor: Extractor, state: ServerState, batch: ClientBatch, basis: MaybeBasis
) -> tuple[Callable, PyTree]:
    """Returns ``part -> (features, labels)``, and the parts of a client's examples."""
    task, count = extractor.task, max(batch.mask.shape[0], 1)
    at_once = min(extractor.microbatch or count, count)
    size = _rows_at_once(count, at_once)

    def look(part):
        examples, mask = part
        projected = partial(closed_form.project, basis)
        if isinstance(examples, dict) and "kept" in examples:
            features = projected(examples["kept"].astype(jnp.float32))
        else:
            model = state.params, state.model_state
            features = _features(task, model, examples, at_once, projected)
        held = jax.nn.one_hot(task.labels(examples), task.num_classes) * mask[:, None]
        # A client whose features are not finite drops out, but padding cannot make it.
        return jnp.where(mask[:, None], features, 0.0), held

    return look, cohorts.batched((batch.examples, batch.mask), size)


def _rows_at_once(count: int, at_once: int) -> int:
    """Returns the examples of a part: a multiple of ``at_once``, up to ``_ROWS``.

    Parts that come out even spare a padded copy of all features.
    """
    largest = at_once * max(1, min(_ROWS, count) // at_once)
    even = [size for size in range(largest, largest // 2, -at_once) if count % size == 0]
    return even[0] if even else largest


def _features(
    task: Task, model: tuple[Params, ModelState], examples: Examples, at_once: int, then
) -> Array:
    """Returns ``then`` of the features ``f32[m, d]`` of examples, and of padding at their end."""

    def some(part):
        return then(activations.features(task, *model, part, np.ones(at_once, bool)))

    found = jax.lax.map(some, cohorts.batched(examples, at_once))
    return found.reshape(-1, found.shape[-1])


def sums(
    extractor: Extractor,
    state: ServerState,
    batch: ClientBatch,
    gram: Callable[[Array], PyTree] = lambda features: (),
    basis: MaybeBasis = (),
    bounded: Callable[[Array], Array] = lambda features: features,
) -> Moments:
    """Returns a client's sums over all its examples; see ``sum_over`` for the other arguments.

    ``gram`` maps some features ``f32[m, k]`` to second moments, to be added up, and ``bounded`` to
    features ``f32[m, k]``, those of each example by itself.
    """

    def add(before, features, labels):
        features = bounded(features)
        second = jax.tree.map(jnp.add, before.gram, gram(features))
        class_sums = before.class_sums + closed_form.product(features.T, labels)
        return Moments(second, class_sums, before.class_counts + labels.sum(0))

    classes = extractor.task.num_classes
    dim = basis.size if basis else extractor.dim
    second = jax.eval_shape(gram, jax.ShapeDtypeStruct((1, dim), jnp.float32))
    zeros = Moments(trees.zeros(second), jnp.zeros((dim, classes)), jnp.zeros(classes))
    return sum_over(extractor, state, batch, add, zeros, basis)


def moments(extractor: Extractor, state: ServerState, batch: ClientBatch, *options) -> Moments:
    """Returns ``sums`` with the packed Gram matrix, for ridge regression."""
    found = sums(extractor, state, batch, closed_form.gram_blocks, *options)
    return found._replace(gram=closed_form.pack(found.gram))


def class_counts(extractor: Extractor, batch: ClientBatch) -> Array:
    """Returns a client's examples of each class, ``f32[C]``."""
    task = extractor.task
    return losses.class_counts(task.labels(batch.examples), batch.mask, task.num_classes)


def result(batch: ClientBatch, message: PyTree, sums: PyTree = None, **metrics) -> ClientResult:
    """Returns a client's result, of weight 0 where it is not finite.

    Where ``sums`` are given they are checked instead of the message, which may have rounded them.
    """
    leaves = jax.tree.leaves(message if sums is None else sums)
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
    weight = jnp.where(finite, jnp.sum(batch.mask).astype(jnp.float32), 0.0)
    return ClientResult(message, weight, model_state={}, metrics=metrics)
