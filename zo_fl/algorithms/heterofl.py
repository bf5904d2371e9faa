"""HeteroFL: low-resource clients train a narrower model, nested in the whole one.

    level a, b, c, d, e = width 1, 1/2, 1/4, 1/8, 1/16; a sub-model is the *leading slice* of every
    parameter (the first channels), and is really that small: it is cut out, not masked
    client:  E epochs of SGD on its slice; logits of classes that it does not hold are set to 0
    server:  each entry <- mean over the clients that held it, uniform; entries nobody held stay.
             Rows of the last layer are averaged over clients that hold the class.

Static BatchNorm: clients train with batch statistics and send none; before an evaluation the server
computes them in a pass of the whole model over the training data. "HeteroFL" of the ZOWarmUp paper
gives high-resource clients level a and the others level b.

Differs from the source: the pass over the training data takes exact means over batches of
unaugmented images; ``assignment="dynamic"`` re-draws each round who has which level with fixed
numbers of clients a level, where the source draws each client's independently.

Source: Diao, Ding, Tarokh, ICLR 2021 (arXiv 2010.01264) and its public code; ZOWarmUp, section 4.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zo_fl.algorithms import fedavg
from zo_fl.clients import batch_statistics, first_order
from zo_fl.core import keys
from zo_fl.core.cohorts import largest_remainder, make_sampler
from zo_fl.core.errors import ConfigError
from zo_fl.core.phase import Phase, Problem, as_trained, group_of, make_phase
from zo_fl.core.task import Task
from zo_fl.core.types import (
    HIGH,
    Aggregation,
    Array,
    ClientBatch,
    ClientResult,
    ClientStrategy,
    Cohort,
    FederatedData,
    Params,
    PyTree,
    ServerState,
)

WIDTHS = {"a": 1.0, "b": 1 / 2, "c": 1 / 4, "d": 1 / 8, "e": 1 / 16}
ASSIGNMENTS = ("tier", "dynamic")
HEAD = "head"  # the last layer of every model; its last axis is the classes
STATISTICS_BATCH = 500


class Update(NamedTuple):
    """A level's contribution to the mean over the cohort.

    Attributes:
      delta: shaped like the whole model, 0 outside of the level's slice.
      holders: ``f32[L]``, 1 at the level.
      class_holders: ``f32[L, classes]``, the classes that the client holds, in the level's row.
    """

    delta: Params
    holders: Array
    class_holders: Array


def phases(problem: Problem, *, heterofl: dict) -> tuple[Phase, ...]:
    """Returns the one phase of HeteroFL; ``heterofl`` is the config block of ``phase``."""
    return (phase(problem, **heterofl),)


def phase(
    problem: Problem,
    *,
    num_rounds: int,
    cohort_size: int,
    levels: str,
    assignment: str,
    local_epochs: int,
    batch_size: int,
    lr: float,
    milestones: Sequence[int],
    momentum: float,
    weight_decay: float,
    clip_norm: float,
    mask_logits: bool,
    augment: bool,
    precision: str,
) -> Phase:
    """Returns the phase; the arguments are the fields of ``config.heterofl``.

    Args:
      problem: task and clients.
      num_rounds: rounds.
      cohort_size: clients a round, each level its share; 0 = all.
      levels: distinct letters of ``WIDTHS``, widest first: the first for high-resource clients, the
        others dealt out evenly among the low-resource ones. One letter: for all clients.
      assignment: ``tier`` as above, or ``dynamic``: as many of each level, re-drawn every round.
      local_epochs: E.
      batch_size: examples a step.
      lr: client step size.
      milestones: rounds after which it is divided by 10.
      momentum: of the client, fresh every round.
      weight_decay: of the client, coupled (L2).
      clip_norm: largest norm of a client's gradient; 0 = any.
      mask_logits: set logits of absent classes to 0 in local training.
      augment: random crop and flip.
      precision: of local training, see ``zo_fl/core/precision.py``.

    Raises:
      ConfigError: an unknown name or a number out of range.
    """
    _check(levels, assignment)
    widths = [WIDTHS[level] / WIDTHS[levels[0]] for level in levels]

    def training(round_idx) -> first_order.LocalTraining:
        decays = jnp.sum(round_idx >= jnp.array(milestones, jnp.int32))
        optimizer = optax.chain(
            optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
            first_order.sgd(lr * 0.1**decays, momentum, weight_decay),
        )
        ragged = fedavg.has_ragged_clients(problem)
        return first_order.LocalTraining(optimizer, local_epochs, batch_size, augment, ragged)

    def task_of(width) -> Task:
        return problem.task if width == 1.0 else problem.narrow_task(width)

    strategies = [
        slice_strategy(
            task_of(width).with_precision(precision, "heterofl.precision"),
            training,
            level=index,
            num_levels=len(levels),
            mask_logits=mask_logits,
        )
        for index, width in enumerate(widths)
    ]
    groups = tuple(
        group_of(
            problem,
            strategy,
            lambda clients, examples: clients * examples * local_epochs,
            eligible,
            size,
            sample,
        )._replace(name=f"level {level}")
        for level, strategy, (eligible, size, sample) in zip(
            levels, strategies, _cohorts(problem, len(levels), assignment, cohort_size), strict=True
        )
    )
    aggregation = Aggregation(finalize=mean_over_holders(strategies))
    pools = problem.task.has_statistics
    return make_phase(
        problem,
        "heterofl",
        num_rounds,
        groups,
        optax.sgd(1.0),
        aggregation,
        static_statistics(problem) if pools else as_trained,
        needs_all_data=pools,
    )


def leading_slice(tree: PyTree, shapes: PyTree) -> PyTree:
    """Returns the leading slice of every leaf of ``tree``, of the shapes of another tree."""
    return jax.tree.map(lambda leaf, like: leaf[tuple(map(slice, like.shape))], tree, shapes)


def embed(tree: PyTree, like: PyTree) -> PyTree:
    """Returns every leaf as the leading slice of zeros shaped like another tree's leaf."""
    return jax.tree.map(
        lambda leaf, whole: jnp.pad(
            leaf, [(0, n - m) for m, n in zip(leaf.shape, whole.shape, strict=True)]
        ),
        tree,
        like,
    )


def slice_strategy(
    task: Task,
    training: Callable[[Array], first_order.LocalTraining],
    *,
    level: int,
    num_levels: int,
    mask_logits: bool,
) -> ClientStrategy:
    """Returns the strategy of one level: trains a slice, sends its delta and its set of labels.

    Args:
      task: of the narrow model.
      training: ``round_idx -> LocalTraining``.
      level: index of the level.
      num_levels: L.
      mask_logits: see ``phase``.
    """
    shapes = jax.eval_shape(task.init, keys.run_key(0))

    def receives(state: ServerState):
        return leading_slice((state.params, state.model_state), shapes)

    def client_update(state: ServerState, batch: ClientBatch, run_key):
        params, model_state = receives(state)
        num_classes = params[HEAD]["bias"].shape[0]
        is_label = batch.labels[:, None] == jnp.arange(num_classes)[None]
        present = jnp.any(is_label & batch.mask[:, None], axis=0)

        def losses(params, model_state, images, labels, mask):
            logits, model_state = task.logits(params, model_state, images, mask, True)
            if mask_logits:
                logits = jnp.where(present[None], logits, 0.0)
            return task.cross_entropy(logits, labels), model_state

        client_key = keys.client_key(keys.round_key(run_key, state.round_idx), batch.client_id)
        after, _, loss = first_order.train(
            training(state.round_idx), losses, params, model_state, batch, client_key
        )
        weight = jnp.any(batch.mask).astype(jnp.float32)
        message = (optax.tree.sub(params, after), present)
        return ClientResult(message, weight, {}, {"loss": loss})

    def decode(message, client_id, state: ServerState, run_key):
        del client_id, run_key
        delta, present = message
        # A class that the client does not hold is none of its business, weight decay included.
        delta = delta | {HEAD: jax.tree.map(lambda d: d * _as_columns(present, d), delta[HEAD])}
        here = jax.nn.one_hot(level, num_levels)
        return Update(embed(delta, state.params), here, here[:, None] * present[None])

    return ClientStrategy(client_update, decode, receives)


def mean_over_holders(strategies: Sequence[ClientStrategy]) -> Callable[..., Any]:
    """Returns the ``finalize`` that divides each entry by the clients that held it.

    Args:
      strategies: one a level, in the order of ``Update.holders``.
    """

    def finalize(mean: Update, state: ServerState, run_key):
        del run_key
        shares = holder_shares(strategies, mean, state)
        gradient = jax.tree.map(
            lambda delta, share: jnp.where(share > 0, delta / jnp.maximum(share, 1e-12), 0.0),
            mean.delta,
            shares,
        )
        return gradient, state.strategy_state

    return finalize


def holder_shares(strategies, mean: Update, state: ServerState) -> Params:
    """Returns, for each entry of the model, the share of the cohort that held it."""

    def of_level(strategy: ClientStrategy, holders, class_holders):
        # The messages' shapes tell the slice.
        params, _ = jax.eval_shape(strategy.receives, state)

        def ones(leaf):
            return jnp.full(leaf.shape, holders)

        def columns(leaf):
            return jnp.broadcast_to(_as_columns(class_holders, leaf), leaf.shape)

        share = {
            name: jax.tree.map(columns if name == HEAD else ones, part)
            for name, part in params.items()
        }
        return embed(share, state.params)

    shares = [
        of_level(strategy, mean.holders[i], mean.class_holders[i])
        for i, strategy in enumerate(strategies)
    ]
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *shares)


def static_statistics(problem: Problem) -> Callable[[ServerState, FederatedData], Any]:
    """Returns ``(state, data) -> (params, model_state)`` with statistics of the training data.

    Batches mix all clients, in a fixed order: normalised by itself, a client's own batch would have
    the statistics of its few classes.
    """
    rows = np.asarray(problem.clients.client_indices)
    sizes = np.asarray(problem.clients.client_sizes)
    held = np.concatenate([row[:size] for row, size in zip(rows, sizes, strict=True)])
    held = np.random.default_rng(0).permutation(held).astype(np.int32)
    missing = -len(held) % min(STATISTICS_BATCH, len(held))
    mask = np.pad(np.ones(len(held), bool), (0, missing))
    held = np.pad(held, (0, missing))
    size = min(STATISTICS_BATCH, len(held))

    def evaluated(state: ServerState, data: FederatedData):
        def one(inputs):
            rows, mask = inputs
            moments = batch_statistics.batch_moments(
                problem.task,
                state.params,
                state.model_state,
                jnp.asarray(data.images)[rows][None],
                mask[None],
            )
            return jax.tree.map(lambda leaf: jnp.sum(mask) * leaf, moments)

        sums = jax.lax.map(one, (held.reshape(-1, size), mask.reshape(-1, size)))
        moments = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0) / mask.sum(), sums)
        return state.params, batch_statistics.from_moments(moments)

    return evaluated


def _as_columns(classes: Array, leaf: Array) -> Array:
    """Returns ``f32[classes]`` with as many axes as ``leaf``, the classes last."""
    return classes.reshape((1,) * (leaf.ndim - 1) + (-1,)).astype(jnp.float32)


def _cohorts(problem: Problem, num_levels: int, assignment: str, cohort_size: int):
    """Returns ``(eligible, cohort size, sample_cohort)`` of each level.

    Low-resource clients are dealt out among the narrow levels in turn; tiers are drawn at random,
    so the order of their ids means nothing.
    """
    tiers = np.asarray(problem.clients.client_tiers)
    if num_levels == 1:
        members = [np.arange(len(tiers), dtype=np.int32)]
    else:
        high, low = (np.flatnonzero(tiers == HIGH), np.flatnonzero(tiers != HIGH))
        members = [high, *(low[i :: num_levels - 1] for i in range(num_levels - 1))]
        members = [ids.astype(np.int32) for ids in members]
    if not all(map(len, members)):
        raise ConfigError(
            f"{len(tiers)} clients leave a level of {num_levels} without any; change "
            "config.heterofl.levels, config.data.num_clients or config.data.high_fraction"
        )
    sizes = [len(ids) for ids in members]
    counts = largest_remainder(cohort_size, sizes) if cohort_size else sizes
    if cohort_size > len(tiers) or not all(counts):
        raise ConfigError(
            f"cohort_size={cohort_size} leaves a level without clients, or exceeds the "
            f"{len(tiers)} there are; change config.heterofl.cohort_size"
        )
    if assignment == "dynamic":
        everyone = np.arange(len(tiers), dtype=np.int32)
        ends = np.cumsum([0, *counts])
        return [
            (everyone, count, _dealt(len(tiers), int(start), count))
            for start, count in zip(ends, counts, strict=False)
        ]
    return [
        (
            ids,
            count,
            make_sampler(
                ids,
                count,
                tiers,
                "uniform",
                "config.heterofl.cohort_size",
            ),
        )
        for ids, count in zip(members, counts, strict=True)
    ]


def _dealt(num_clients: int, start: int, count: int) -> Callable[[Array], Cohort]:
    """Returns a sampler of ``count`` clients from place ``start`` of a round's shuffled clients."""

    def sample(round_key: Array) -> Cohort:
        order = jax.random.permutation(keys.stream(round_key, "levels"), num_clients)
        ids = jnp.sort(order[start : start + count]).astype(jnp.int32)
        return Cohort(ids, jnp.ones(count, bool))

    return sample


def _check(levels: str, assignment: str) -> None:
    known = list(levels) == sorted(set(levels)) and set(levels) <= set(WIDTHS)
    if not levels or not known:
        raise ConfigError(
            f"levels is {levels!r}; allowed: distinct letters of {''.join(WIDTHS)}, widest first, "
            "such as 'ab'; change config.heterofl.levels"
        )
    if assignment not in ASSIGNMENTS:
        raise ConfigError(
            f"unknown assignment {assignment!r}; allowed: {', '.join(ASSIGNMENTS)}; "
            "change config.heterofl.assignment"
        )
