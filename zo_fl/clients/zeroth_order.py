"""What a client computes in any zeroth-order round: losses at perturbed weights, step by step.

    for each local step t:   scalars_t = estimate(F on the step's examples, w_t, directions t)
                             w_{t+1} = w_t - local_lr * gradient(scalars_t)

With one step on all examples this is ZOWarmUp's round; with k steps on k equal chunks its Table 3;
with many steps on mini-batches FedKSeed, DeComFL and FedZO. Which directions are probed, what is
sent and what the server makes of it is the methods' own affair (``zo_fl/algorithms``).

BatchNorm in a pass that has no gradient is an open choice in the paper; ``bn_policy`` makes it
explicit. Perturbed passes never touch running statistics, whatever the policy.

    policy        losses are computed with       running statistics
    frozen        the running statistics         stay as they were at the pivot
    batch         the client's batch statistics  stay as they were at the pivot
    batch_sync    the client's batch statistics  one unperturbed pass a round moves them by the
                                                 usual momentum; n_k-weighted mean of the clients'
    recalibrate   the running statistics         replaced every round by the exact pooled statistics
                                                 of all clients' unperturbed passes

The last two upload statistics beside the scalars, and are billed for them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zo_fl.clients import batch_statistics, directions, estimators
from zo_fl.core import augment as augmentation
from zo_fl.core import cohorts, keys
from zo_fl.core.errors import ConfigError
from zo_fl.core.task import Task
from zo_fl.core.types import Array, ClientBatch, ModelState, Params, ServerState

BN_POLICIES = ("frozen", "batch", "batch_sync", "recalibrate")


class Prober(NamedTuple):
    """How losses are probed: the fields that all zeroth-order methods share.

    Attributes:
      task: the learning problem.
      add_direction: from ``zo.directions``.
      estimator: from ``zo.estimators``.
      num_directions: S, a local step.
      local_steps: k, a round.
      batch_size: examples a local step; 0 = one k-th of the client's examples.
      local_lr: step size between two messages of a client.
      bn_policy: one of ``BN_POLICIES``; ``frozen`` if the model has no batch statistics.
      microbatch: examples a forward pass, 0 = all of a step at once. Exact without batch
        statistics; with them each microbatch is normalised by itself.
      augment: random crop and flip, drawn once a round and client: all passes see the same pixels.
    """

    task: Task
    add_direction: directions.AddDirection
    estimator: estimators.Estimator
    num_directions: int
    local_steps: int
    batch_size: int
    local_lr: float
    bn_policy: str
    microbatch: int
    augment: bool


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


def make_prober(
    task: Task,
    *,
    block: str,
    estimator: str,
    distribution: str,
    eps: float,
    tau: float,
    num_directions: int,
    local_steps: int,
    batch_size: int,
    local_lr: float,
    bn_policy: str,
    microbatch: int,
    augment: bool,
    precision: str,
) -> Prober:
    """Returns the prober of a config block; the arguments are its fields.

    Raises:
      ConfigError: an unknown name or a number out of range.
    """
    check_name(block, "bn_policy", bn_policy, BN_POLICIES)
    for field, value, least in (
        ("local_steps", local_steps, 1),
        ("batch_size", batch_size, 0),
        ("microbatch", microbatch, 0),
    ):
        if value < least:
            raise ConfigError(
                f"{field} is {value}; it must be >= {least}; change config.{block}.{field}"
            )
    add_direction = directions.create(distribution=distribution, tau=tau, block=block)
    return Prober(
        task.with_precision(precision, f"{block}.precision"),
        add_direction,
        estimators.create(
            estimator, add_direction, eps=eps, num_directions=num_directions, block=block
        ),
        num_directions,
        local_steps,
        batch_size,
        local_lr,
        bn_policy if task.has_statistics else "frozen",
        microbatch,
        augment,
    )


def check_name(block: str, field: str, given: str, allowed) -> None:
    """Raises a ConfigError unless ``given`` is one of ``allowed``."""
    if given not in allowed:
        raise ConfigError(
            f"unknown {field} {given!r}; allowed: {', '.join(allowed)}; "
            f"change config.{block}.{field}"
        )


def forward_passes(prober: Prober, clients: float, examples: float) -> float:
    """Returns single-example forward passes of a round of ``clients`` of ``examples`` each."""
    seen = prober.batch_size * prober.local_steps if prober.batch_size else examples
    unperturbed = examples if prober.bn_policy in ("batch_sync", "recalibrate") else 0
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
    images = batch.images
    if prober.augment:
        images = augmentation.crop_and_flip(keys.stream(client_key, "augment"), images)
    rows, mask = _steps(prober, batch.mask, keys.stream(client_key, "batches"))

    def step(params, inputs):
        index, rows, mask = inputs
        of_step = (images, batch.labels) if rows is None else (images[rows], batch.labels[rows])
        split = _split(*of_step, mask, prober.microbatch)
        weights = split[2].reshape(-1) / jnp.maximum(jnp.sum(mask), 1)
        losses = _losses(prober, state.model_state, split)
        step_keys = draw_keys(index)
        estimate = prober.estimator.estimate(losses, weights, params, step_keys)
        coefficients = -prober.local_lr * prober.estimator.coefficients(estimate.scalars)
        after = estimators.combine(prober.add_direction, coefficients, step_keys, params)
        return after, (estimate.scalars, estimate.loss)

    if prober.local_steps == 1:  # no loop: the local weights are not computed unless asked for
        after, sent = step(state.params, (jnp.int32(0), *_first(rows, mask)))
        scalars, losses = sent[0][None], sent[1][None]
    else:
        inputs = (jnp.arange(prober.local_steps), rows, mask)
        after, (scalars, losses) = jax.lax.scan(step, state.params, inputs)
    whole = _split(images, batch.labels, batch.mask, prober.microbatch)
    uploaded = _statistics(prober, state, whole)
    size = jnp.sum(batch.mask).astype(jnp.float32)
    size = jnp.where(jnp.any(jnp.isfinite(scalars)), size, 0.0)
    loss = jnp.mean(losses, where=jnp.isfinite(losses))
    return Probes(scalars, after, uploaded, loss, size)


def finalize_state(bn_policy: str) -> Callable[[ModelState, ModelState], ModelState]:
    """Returns ``(model_state, mean uploaded) -> model_state`` of a policy."""
    if bn_policy == "batch_sync":
        return lambda model_state, uploaded: uploaded
    if bn_policy == "recalibrate":
        return lambda model_state, uploaded: batch_statistics.from_moments(uploaded)
    return lambda model_state, uploaded: model_state


def _steps(prober: Prober, mask: Array, key: Array) -> tuple[Array | None, Array]:
    """Returns ``(rows i32[k, b], mask bool[k, b])``: the examples of each local step.

    Rows are None when the one step sees all examples, in their order. Mini-batches go through the
    client's shuffled examples, again and again if there are more steps than batches.
    """
    if prober.local_steps == 1 and not prober.batch_size:
        return None, mask[None]
    size = prober.batch_size or -(-mask.shape[0] // prober.local_steps)
    batches_an_epoch = -(-mask.shape[0] // size)
    epoch_keys = jax.random.split(key, -(-prober.local_steps // batches_an_epoch))
    rows, masks = jax.vmap(cohorts.epoch_order, in_axes=(0, None, None))(epoch_keys, mask, size)
    cut = lambda leaf: leaf.reshape(-1, size)[: prober.local_steps]  # noqa: E731
    return cut(rows), cut(masks)


def _first(rows: Array | None, mask: Array) -> tuple[Array | None, Array]:
    return (None if rows is None else rows[0]), mask[0]


def _losses(prober: Prober, model_state: ModelState, split) -> Callable[[Params], Array]:
    """Returns ``params -> f32[n]``, one microbatch after the other."""
    use_batch_statistics = prober.bn_policy in ("batch", "batch_sync")

    def losses(params):
        def one(inputs):
            return prober.task.losses(params, model_state, *inputs, use_batch_statistics)[0]

        return jax.lax.map(one, split).reshape(-1)

    return losses


def _split(images, labels, mask, microbatch: int):
    """Returns the arrays with leading axes ``[batches, microbatch]``, padded by masked examples."""
    count = mask.shape[0]
    size = min(microbatch or count, count)
    missing = -count % size

    def one(leaf):
        padded = jnp.pad(leaf, [(0, missing)] + [(0, 0)] * (leaf.ndim - 1))
        return padded.reshape(-1, size, *leaf.shape[1:])

    return one(images), one(labels), one(mask)


def _statistics(prober: Prober, state: ServerState, split) -> ModelState:
    """Returns the statistics a client uploads."""
    if prober.bn_policy not in ("batch_sync", "recalibrate"):
        return {}
    images, _, mask = split
    moments = batch_statistics.batch_moments(
        prober.task, state.params, state.model_state, images, mask
    )
    if prober.bn_policy == "recalibrate":
        return moments
    return batch_statistics.move(state.model_state, batch_statistics.from_moments(moments))
