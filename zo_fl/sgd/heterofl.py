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

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zo_fl.engine import keys, losses, server, statistics
from zo_fl.engine.algorithm import (
    Client,
    ClientBatch,
    ClientResult,
    Cohort,
    Evaluated,
    Group,
    Phase,
    Problem,
    ServerState,
    as_trained,
)
from zo_fl.engine.cohorts import Sampler, group_of, largest_remainder, make_sampler
from zo_fl.engine.fields import Block, ConfigError, Field, FieldError, Rule, changed
from zo_fl.engine.keys import Keys
from zo_fl.engine.task import Task
from zo_fl.engine.types import HIGH, Array, FederatedData, ModelState, Params, PyTree
from zo_fl.sgd import client
from zo_fl.sgd.client import LocalTraining

WIDTHS = {"a": 1.0, "b": 1 / 2, "c": 1 / 4, "d": 1 / 8, "e": 1 / 16}
ASSIGNMENTS = ("tier", "dynamic")
STATISTICS_BATCH = 500
CLIP_NORM = 1.0  # of a client's gradient


_LEVELS = Rule(
    lambda: (
        f"distinct letters of {''.join(WIDTHS)}, widest first, and a among them: someone has to "
        "train the whole model; such as 'ab'"
    ),
    lambda levels: (
        levels[:1] == "a" and list(levels) == sorted(set(levels)) and set(levels) <= set(WIDTHS)
    ),
)
_MILESTONES = Rule(
    lambda: "rounds from 1 on, each larger than the one before",
    lambda rounds: all(a < b for a, b in zip((0, *rounds), rounds, strict=False)),
)

BLOCKS: dict[str, Block] = {
    "heterofl": {
        "num_rounds": Field(500, "rounds", at_least=0),
        "cohort_size": Field(0, "clients a round, each level its share; 0 = all", at_least=0),
        "levels": Field(
            "ab", "widths 1, 1/2, .. 1/16 = a to e; the first is the high tier's", rule=_LEVELS
        ),
        "assignment": Field("tier", "assignment of levels; dynamic: every round", ASSIGNMENTS),
        **changed(client.FIELDS, lr=0.1, momentum=0.9, weight_decay=5e-4),
        "milestones": Field((200, 400), "rounds after which lr is divided by 10", rule=_MILESTONES),
    }
}


def phases(problem: Problem, *, heterofl: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Returns the one phase of HeteroFL; ``heterofl`` is its config block.

    Raises:
      ConfigError: a level without clients, or a cohort that cannot be drawn.
    """
    levels = heterofl["levels"]
    drawn = _cohorts(problem, len(levels), heterofl["assignment"], heterofl["cohort_size"])
    groups = tuple(_level(problem, heterofl, index, *drawn[index]) for index in range(len(levels)))
    clients = [group.client for group in groups]
    mean = mean_over_holders(clients, problem.task.head)
    pools = problem.task.has_statistics
    evaluated = pooled(problem, STATISTICS_BATCH) if pools else as_trained
    descending = server.descend(optax.sgd(1.0), mean)
    return (Phase("heterofl", heterofl["num_rounds"], groups, descending, evaluated),)


def masked(task: Task, batch: ClientBatch) -> Callable:
    """Returns the losses of a client that leaves alone the classes which it does not hold."""
    return losses.of_client(task, "masked", batch)


def _level(
    problem: Problem, block: Mapping[str, Any], index: int, eligible, size: int, sample
) -> Group:
    """Returns the group of one level: who is in it, and how they train."""
    levels = block["levels"]
    width = WIDTHS[levels[index]]
    task = problem.task if width == 1.0 else problem.narrow_task(width)

    def training(state: ServerState) -> LocalTraining:
        decays = jnp.sum(state.round_idx >= jnp.array(block["milestones"], jnp.int32))
        optimizer = optax.chain(
            optax.clip_by_global_norm(CLIP_NORM),
            client.sgd(block["lr"] * 0.1**decays, block["momentum"], block["weight_decay"]),
        )
        return client.local_training(problem, block, optimizer, masked)

    task = task.with_precision(block["precision"])
    training_slice = slice_client(task, training, level=index, num_levels=len(levels))
    passes = client.forward_passes(block)
    group = group_of(problem, training_slice, passes, eligible, size, sample, trains=True)
    return group._replace(name=f"level {levels[index]}")


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
        raise FieldError(
            "cohort_size",
            f"={cohort_size} leaves a level without clients, or exceeds the {len(tiers)} there are",
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
            make_sampler(ids, count, tiers, "uniform"),
        )
        for ids, count in zip(members, counts, strict=True)
    ]


def _dealt(num_clients: int, start: int, count: int) -> Sampler:
    """Returns a sampler of ``count`` clients from place ``start`` of a round's shuffled clients."""

    def sample(round_key: Array) -> Cohort:
        order = jax.random.permutation(keys.stream(round_key, "levels"), num_clients)
        ids = jnp.sort(order[start : start + count]).astype(jnp.int32)
        return Cohort(ids, jnp.ones(count, bool))

    return sample


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


def slice_client(
    task: Task,
    training: Callable[[ServerState], LocalTraining],
    *,
    level: int,
    num_levels: int,
) -> Client:
    """Returns the client of one level: trains a slice, sends its delta and its set of labels.

    Args:
      task: of the narrow model.
      training: how, given what the server sent.
      level: index of the level.
      num_levels: L.
    """
    shapes = jax.eval_shape(task.init, keys.run_key(0))

    def receives(state: ServerState):
        return leading_slice((state.params, state.model_state), shapes)

    def update(state: ServerState, batch: ClientBatch, own: Keys) -> ClientResult:
        params, model_state = receives(state)
        is_label = task.labels(batch.examples)[:, None] == jnp.arange(task.num_classes)[None]
        present = jnp.any(is_label & batch.mask[:, None], axis=0)
        start = state._replace(params=params, model_state=model_state)
        after, _, loss = client.train(task, training(state), start, batch, own)
        return ClientResult(
            message=(optax.tree.sub(params, after), present),
            weight=jnp.any(batch.mask).astype(jnp.float32),
            model_state={},
            metrics={"loss": loss},
        )

    def decode(message, state: ServerState, own: Keys) -> Update:
        delta, present = message
        # A class that the client does not hold is none of its business, weight decay included.
        held = jax.tree.map(lambda leaf: leaf * _as_columns(present, leaf), delta[task.head])
        here = jax.nn.one_hot(level, num_levels)
        whole = embed(delta | {task.head: held}, state.params)
        return Update(whole, here, here[:, None] * present[None])

    return Client(update, decode, receives, holds_part=True)


def mean_over_holders(clients: Sequence[Client], head: str) -> Callable:
    """Returns the server's ``gradient`` that divides each entry by the clients that held it.

    Args:
      clients: one a level, in the order of ``Update.holders``.
      head: name of the last layer, whose columns are classes.
    """

    def gradient(mean: Update, state: ServerState, of_round: Keys) -> tuple[Params, PyTree]:
        shares = holder_shares(clients, head, mean, state)
        divide = lambda delta, share: jnp.where(  # noqa: E731
            share > 0, delta / jnp.maximum(share, 1e-12), 0.0
        )
        return jax.tree.map(divide, mean.delta, shares), state.strategy_state

    return gradient


def holder_shares(clients: Sequence[Client], head: str, mean: Update, state: ServerState) -> Params:
    """Returns, for each entry of the model, the share of the cohort that held it."""

    def of_level(held: Client, holders, class_holders):
        # The messages' shapes tell the slice.
        params, _ = jax.eval_shape(held.receives, state)

        def ones(leaf):
            return jnp.full(leaf.shape, holders)

        def columns(leaf):
            return jnp.broadcast_to(_as_columns(class_holders, leaf), leaf.shape)

        share = {
            name: jax.tree.map(columns if name == head else ones, part)
            for name, part in params.items()
        }
        return embed(share, state.params)

    shares = [
        of_level(held, mean.holders[i], mean.class_holders[i]) for i, held in enumerate(clients)
    ]
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *shares)


def _as_columns(classes: Array, leaf: Array) -> Array:
    """Returns ``f32[classes]`` with as many axes as ``leaf``, the classes last."""
    return classes.reshape((1,) * (leaf.ndim - 1) + (-1,)).astype(jnp.float32)


def pooled(problem: Problem, batch_size: int) -> Evaluated:
    """Returns ``(state, data) -> (params, model_state)`` with statistics of all training data.

    Batches mix all clients, in a fixed order: normalised by itself, a client's own batch would have
    the statistics of its few classes.

    Args:
      problem: who holds which rows.
      batch_size: examples a batch.
    """
    rows = np.asarray(problem.clients.client_indices)
    sizes = np.asarray(problem.clients.client_sizes)
    held = np.concatenate([row[:size] for row, size in zip(rows, sizes, strict=True)])
    held = np.random.default_rng(0).permutation(held).astype(np.int32)
    size = min(batch_size, len(held))
    missing = -len(held) % size
    mask = np.pad(np.ones(len(held), bool), (0, missing))
    held = np.pad(held, (0, missing))

    def evaluated(state: ServerState, data: FederatedData | None) -> tuple[Params, ModelState]:
        if data is None:
            raise ConfigError(
                "statistics are pooled over all training data, which are streamed; set "
                "config.run.data to 'device'"
            )
        held_examples = data.examples

        def one(inputs):
            rows, mask = inputs
            examples = jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows][None], held_examples)
            moments = statistics.batch_moments(
                problem.task, state.params, state.model_state, examples, mask[None]
            )
            return jax.tree.map(lambda leaf: jnp.sum(mask) * leaf, moments)

        sums = jax.lax.map(one, (held.reshape(-1, size), mask.reshape(-1, size)))
        moments = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0) / mask.sum(), sums)
        return state.params, statistics.from_moments(moments)

    return evaluated
