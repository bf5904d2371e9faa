"""HeteroFL: low-resource clients train a narrower model, nested in the whole one.

    level a, b, c, d, e = width 1, 1/2, 1/4, 1/8, 1/16; a sub-model is the *leading slice* of every
    parameter (the first channels), and is really that small: it is cut out, not masked
    client:  E epochs of SGD on its slice; logits of classes that it does not hold are set to 0
    server:  each entry <- mean over the clients that held it, uniform; entries nobody held stay.
             Columns of the last layer are averaged over clients that hold the class.

Static BatchNorm: clients train with batch statistics and send none; before an evaluation the server
computes them in a pass of the whole model over the training data. "HeteroFL" of the ZOWarmUp paper
gives high-resource clients level a and the others level b.

Differs from the source: the pass over the training data takes exact means over batches of
unaugmented images; ``assignment="dynamic"`` re-draws each round who has which level with fixed
numbers of clients a level, where the source draws each client's independently.

Source: Diao, Ding, Tarokh, ICLR 2021 (arXiv 2010.01264) and its public code; ZOWarmUp, section 4.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zo_fl.engine import cohorts, keys, losses, server, statistics
from zo_fl.engine.algorithm import (
    Cohort,
    Evaluated,
    Group,
    Phase,
    Problem,
    ServerState,
    as_trained,
)
from zo_fl.engine.fields import Block, ConfigError, Field, FieldError, Rule, changed
from zo_fl.engine.types import HIGH, Array, FederatedData, ModelState, Params
from zo_fl.sgd import client, slices
from zo_fl.sgd.client import LocalTraining

WIDTHS = {"a": 1.0, "b": 1 / 2, "c": 1 / 4, "d": 1 / 8, "e": 1 / 16}
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
        "cohort_size": Field(0, "clients a round, each level its share", at_least=1, zero="all"),
        "levels": Field(
            "ab", "widths 1, 1/2, .. 1/16 = a to e; the first is the high tier's", rule=_LEVELS
        ),
        "assignment": Field(
            "tier", "assignment of levels; dynamic: every round", ("tier", "dynamic")
        ),
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
    mean = slices.mean_over_holders([group.client for group in groups], problem.task.head)
    descending = server.descend(optax.sgd(1.0), mean)
    evaluated = pooled(problem) if problem.task.has_statistics else as_trained
    return (Phase("heterofl", heterofl["num_rounds"], groups, descending, evaluated),)


def _level(
    problem: Problem, block: Mapping[str, Any], index: int, eligible, size: int, sample
) -> Group:
    """Returns the group of one level: ``eligible`` and the like are of ``_cohorts``."""
    levels = block["levels"]
    width = WIDTHS[levels[index]]
    task = problem.task if width == 1.0 else problem.narrow_task(width)

    def training(state: ServerState) -> LocalTraining:
        decays = jnp.sum(state.round_idx >= jnp.array(block["milestones"], jnp.int32))
        optimizer = optax.chain(
            optax.clip_by_global_norm(CLIP_NORM),
            client.sgd(block["lr"] * 0.1**decays, block["momentum"], block["weight_decay"]),
        )
        return client.local_training(
            problem, block, optimizer, lambda task, batch: losses.of_client(task, "masked", batch)
        )

    task = task.with_precision(block["precision"])
    sliced = slices.slice_client(task, training, level=index, num_levels=len(levels))
    passes = client.forward_passes(block)
    group = cohorts.group_of(problem, sliced, passes, eligible, size, sample, trains=True)
    return group._replace(name=f"level {levels[index]}")


def _cohorts(problem: Problem, num_levels: int, assignment: str, cohort_size: int):
    """Returns ``(eligible, cohort size, sample_cohort)`` of each level.

    Low-resource clients are dealt out among the narrow levels in turn; tiers are drawn at random,
    so the order of their ids means nothing.
    """
    tiers = np.asarray(problem.clients.client_tiers)
    everyone = np.arange(len(tiers), dtype=np.int32)
    members = [everyone]
    if num_levels > 1:
        low, narrow = everyone[tiers != HIGH], num_levels - 1
        members = [everyone[tiers == HIGH], *(low[i::narrow] for i in range(narrow))]
    if not all(map(len, members)):
        raise ConfigError(
            f"{len(tiers)} clients leave a level of {num_levels} without any; change "
            "config.heterofl.levels, config.data.num_clients or config.data.high_fraction"
        )
    sizes = [len(ids) for ids in members]
    counts = cohorts.largest_remainder(cohort_size, sizes) if cohort_size else sizes
    if cohort_size > len(tiers) or not all(counts):
        raise FieldError(
            "cohort_size",
            f"={cohort_size} leaves a level without clients, or exceeds the {len(tiers)} there are",
        )
    if assignment == "dynamic":
        starts = np.cumsum(counts) - counts
        return [
            (everyone, count, _dealt(len(tiers), int(start), count))
            for start, count in zip(starts, counts, strict=True)
        ]
    return [
        (ids, count, cohorts.make_sampler(ids, count, tiers, "uniform"))
        for ids, count in zip(members, counts, strict=True)
    ]


def _dealt(num_clients: int, start: int, count: int) -> cohorts.Sampler:
    """Returns a sampler of ``count`` clients from place ``start`` of a round's shuffled clients."""

    def sample(round_key: Array) -> Cohort:
        order = jax.random.permutation(keys.stream(round_key, "levels"), num_clients)
        ids = jnp.sort(order[start : start + count]).astype(jnp.int32)
        return Cohort(ids, jnp.ones(count, bool))

    return sample


def pooled(problem: Problem) -> Evaluated:
    """Returns ``(state, data) -> (params, model_state)`` with statistics of all training data.

    Batches mix all clients, in a fixed order: normalised by itself, a client's own batch would have
    the statistics of its few classes.
    """
    rows = np.asarray(problem.clients.client_indices)
    sizes = np.asarray(problem.clients.client_sizes)
    held = rows[np.arange(rows.shape[1]) < sizes[:, None]]
    held = np.random.default_rng(0).permutation(held).astype(np.int32)

    def evaluated(state: ServerState, data: FederatedData | None) -> tuple[Params, ModelState]:
        if data is None:
            raise ConfigError(
                "statistics are pooled over all training data, which are streamed; set "
                "config.run.data to 'device'"
            )

        whole = data.examples

        def one(inputs):
            rows, mask = inputs
            examples = jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows][None], whole)
            return statistics.batch_statistics(problem.task, state, examples, mask[None])

        rows_and_mask = (held, np.ones(len(held), bool))
        batches = cohorts.batched(rows_and_mask, min(STATISTICS_BATCH, len(held)))
        found = jax.tree.map(lambda leaf: leaf[:, 0], jax.lax.map(one, batches))
        return state.params, statistics.pooled(*found)

    return evaluated
