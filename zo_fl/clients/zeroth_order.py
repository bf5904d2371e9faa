"""What a client computes in any zeroth-order round: losses at perturbed weights, step by step.

    for each local step t:   scalars_t = estimate(F on the step's examples, w_t, directions t)
                             w_{t+1} = w_t - local_lr * gradient(scalars_t)

With one step on all examples this is ZOWarmUp's round; with k steps on k equal chunks its Table 3;
with many steps on mini-batches FedKSeed, DeComFL and FedZO. Which directions are probed, what is
sent and what the server makes of it is the methods' own affair (``zo_fl/algorithms``).

Perturbed passes never touch running statistics of BatchNorm, whatever ``bn_policy`` does with them
(``batch_statistics``).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zo_fl.clients import batch_statistics, client_losses, directions, estimators, subspaces
from zo_fl.clients.batch_statistics import POLICIES
from zo_fl.clients.client_losses import Losses
from zo_fl.core import cohorts, keys
from zo_fl.core.fields import Block, Field
from zo_fl.core.precision import PRECISIONS
from zo_fl.core.strategy import ScalarsTwice
from zo_fl.core.task import Task
from zo_fl.core.types import Array, ClientBatch, Examples, ModelState, Params, ServerState

_COMPARED = 16  # scalars


class Probing(NamedTuple):
    """Fields of a config block: how losses are probed, in all zeroth-order methods.

    ``PROBING`` says what they mean. Microbatches are exact without batch statistics; with them each
    is normalised by itself. Augmentation is drawn once a round: all passes see the same pixels.
    """

    estimator: str
    distribution: str
    eps: float
    tau: float
    params: str
    density: float
    num_directions: int
    local_steps: int
    batch_size: int
    bn_policy: str
    microbatch: int
    augment: bool
    precision: str
    loss: str


PROBING: Block = {
    "estimator": Field(
        "two_point",
        "two_point: 2 S passes; forward: S + 1; jvp: exact, worth 2 S",
        lambda: estimators.ESTIMATORS,
    ),
    "distribution": Field("rademacher", "of the directions", lambda: directions.DISTRIBUTIONS),
    "eps": Field(1e-4, "perturbation scale", above=0),
    "tau": Field(0.75, "standard deviation of a direction's coordinates", above=0),
    **subspaces.FIELDS,
    "num_directions": Field(3, "S, of a local step", at_least=1, at_most=10**6),
    "local_steps": Field(1, "a client's own steps a round", at_least=1),
    "batch_size": Field(
        0, "examples a local step; 0 = the client's, split evenly over its steps", at_least=0
    ),
    "bn_policy": Field("batch_sync", "zo_fl/clients/batch_statistics.py", POLICIES),
    "microbatch": Field(0, "examples a forward pass; 0 = all of a step at once", at_least=0),
    "augment": Field(False, "random crop and flip"),
    "precision": Field("float32", "of products: zo_fl/core/precision.py", PRECISIONS),
    "loss": client_losses.FIELD,
}


class Prober(NamedTuple):
    """How losses are probed, its functions made.

    Attributes:
      task: the learning problem, at the precision of the probes.
      add_direction: from ``directions``.
      estimator: from ``estimators``.
      fields: the config's; ``bn_policy`` as it applies to the model.
      local_lr: step size between two messages of a client.
    """

    task: Task
    add_direction: directions.AddDirection
    estimator: estimators.Estimator
    fields: Probing
    local_lr: float


class Probes(NamedTuple):
    """What a client has after its local steps.

    Attributes:
      scalars: ``f32[k, S]``.
      params: its own weights after the last step.
      statistics: what it uploads of batch statistics, ``{}`` unless the policy sends some.
      loss: ``f32[]`` mean over the steps.
      size: ``f32[]`` its examples; 0 if not one probe was finite: it drops out of the round.
    """

    scalars: Array
    params: Params
    statistics: ModelState
    loss: Array
    size: Array


def make_prober(task: Task, fields: Probing, local_lr: float) -> Prober:
    """Returns the prober of a config block.

    Args:
      task: the learning problem.
      fields: of the block.
      local_lr: step size between two messages of a client.

    Raises:
      FieldError: no parameter is left that directions move.
    """
    if not task.has_statistics:
        fields = fields._replace(bn_policy="frozen")
    like, _ = jax.eval_shape(task.init, jax.random.key(0))
    add_direction = subspaces.restrict(
        directions.create(fields.distribution, fields.tau), fields.params, fields.density, like
    )
    estimator = estimators.create(
        fields.estimator, add_direction, eps=fields.eps, num_directions=fields.num_directions
    )
    task = task.with_precision(fields.precision)
    return Prober(task, add_direction, estimator, fields, local_lr)


def forward_passes(prober: Prober, clients: float, examples: float) -> float:
    """Returns single-example forward passes of a round of ``clients`` of ``examples`` each."""
    seen = (
        prober.fields.batch_size * prober.fields.local_steps
        if prober.fields.batch_size
        else examples
    )
    unperturbed = examples if prober.fields.bn_policy in batch_statistics.UPLOADED else 0
    return clients * (seen * prober.estimator.passes + unperturbed)


def probe(
    prober: Prober,
    state: ServerState,
    batch: ClientBatch,
    run_key: Array,
    draw_keys: Callable[[Array], Array],
) -> Probes:
    """Returns what one client learns in one round.

    Args:
      prober: how.
      state: what the server sent.
      batch: the client's examples.
      run_key: ``key[]``.
      draw_keys: ``i32[] local step -> key[S]``: the directions of the step.
    """
    client_key = keys.client_key(keys.round_key(run_key, state.round_idx), batch.client_id)
    examples, losses_of = batch.examples, _losses_of(prober, batch)
    if prober.fields.augment:
        examples = prober.task.augment(keys.stream(client_key, "augment"), examples)
    rows, mask = _steps(prober, batch.mask, keys.stream(client_key, "batches"))

    def step(params, inputs):
        index, rows, mask = inputs
        of_step = examples if rows is None else jax.tree.map(lambda leaf: leaf[rows], examples)
        split = _split(of_step, mask, prober.fields.microbatch)
        weights = split[1].reshape(-1) / jnp.maximum(jnp.sum(mask), 1)
        losses = _losses(prober, losses_of, state.model_state, split)
        step_keys = draw_keys(index)
        estimate = prober.estimator.estimate(losses, weights, params, step_keys)
        coefficients = -prober.local_lr * prober.estimator.coefficients(estimate.scalars)
        after = estimators.combine(prober.add_direction, coefficients, step_keys, params)
        return after, (estimate.scalars, estimate.loss)

    if (
        prober.fields.local_steps == 1
    ):  # no loop: the local weights are not computed unless asked for
        after, sent = step(state.params, (jnp.int32(0), *_first(rows, mask)))
        scalars, losses = sent[0][None], sent[1][None]
    else:
        inputs = (jnp.arange(prober.fields.local_steps), rows, mask)
        after, (scalars, losses) = jax.lax.scan(step, state.params, inputs)
    whole = _split(examples, batch.mask, prober.fields.microbatch)
    uploaded = batch_statistics.of_client(prober.task, prober.fields.bn_policy, state, *whole)
    size = jnp.sum(batch.mask).astype(jnp.float32)
    size = jnp.where(jnp.any(jnp.isfinite(scalars)), size, 0.0)
    loss = jnp.mean(losses, where=jnp.isfinite(losses))
    return Probes(scalars, after, uploaded, loss, size)


def scalars_twice(prober: Prober) -> ScalarsTwice | None:
    """Returns what compares a client's scalars with those in float32; None where they are.

    Along directions of its own, around the server's weights, on one local step's worth of examples.
    """
    fields = prober.fields
    if fields.precision == "float32":
        return None
    estimator = estimators.create(
        fields.estimator, prober.add_direction, eps=fields.eps, num_directions=_COMPARED
    )

    def compare(state: ServerState, batch: ClientBatch, run_key: Array) -> Array:
        client_key = keys.client_key(keys.round_key(run_key, state.round_idx), batch.client_id)
        rows, mask = _first(*_steps(prober, batch.mask, keys.stream(client_key, "batches")))
        examples = batch.examples
        if rows is not None:
            examples = jax.tree.map(lambda leaf: leaf[rows], examples)
        split = _split(examples, mask, fields.microbatch)
        weights = split[1].reshape(-1) / jnp.maximum(jnp.sum(mask), 1)
        directions_ = jax.random.split(keys.stream(client_key, "compared"), _COMPARED)

        def scalars(task: Task) -> Array:
            at_precision = prober._replace(task=task)
            losses_of = _losses_of(at_precision, batch)
            losses = _losses(at_precision, losses_of, state.model_state, split)
            return estimator.estimate(losses, weights, state.params, directions_).scalars

        return jnp.stack([scalars(prober.task), scalars(prober.task.with_precision("float32"))])

    return compare


def _steps(prober: Prober, mask: Array, key: Array) -> tuple[Array | None, Array]:
    """Returns ``(rows i32[k, b], mask bool[k, b])``: the examples of each local step.

    Rows are None when the one step sees all examples, in their order. Mini-batches go through the
    client's shuffled examples, again and again if there are more steps than batches.
    """
    if prober.fields.local_steps == 1 and not prober.fields.batch_size:
        return None, mask[None]
    size = prober.fields.batch_size or -(-mask.shape[0] // prober.fields.local_steps)
    batches_an_epoch = -(-mask.shape[0] // size)
    epoch_keys = jax.random.split(key, -(-prober.fields.local_steps // batches_an_epoch))
    rows, masks = jax.vmap(cohorts.epoch_order, in_axes=(0, None, None))(epoch_keys, mask, size)
    cut = lambda leaf: leaf.reshape(-1, size)[: prober.fields.local_steps]  # noqa: E731
    return cut(rows), cut(masks)


def _first(rows: Array | None, mask: Array) -> tuple[Array | None, Array]:
    return (None if rows is None else rows[0]), mask[0]


def _losses_of(prober: Prober, batch: ClientBatch) -> Losses:
    return client_losses.of_client(prober.task, prober.fields.loss, batch)


def _losses(
    prober: Prober, losses_of: Losses, model_state: ModelState, split
) -> Callable[[Params], Array]:
    """Returns ``params -> f32[n]``, one microbatch after the other."""
    use_batch_statistics = prober.fields.bn_policy in batch_statistics.OF_THE_BATCH

    def losses(params):
        def one(inputs):
            examples, mask = inputs
            return losses_of(params, model_state, examples, mask, use_batch_statistics)[0]

        return jax.lax.map(one, split).reshape(-1)

    return losses


def _split(examples: Examples, mask: Array, microbatch: int) -> tuple[Examples, Array]:
    """Returns the arrays with leading axes ``[batches, microbatch]``, padded by masked examples."""
    count = mask.shape[0]
    size = min(microbatch or count, count)
    missing = -count % size

    def one(leaf):
        padded = jnp.pad(leaf, [(0, missing)] + [(0, 0)] * (leaf.ndim - 1))
        return padded.reshape(-1, size, *leaf.shape[1:])

    return jax.tree.map(one, examples), one(mask)
