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

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zo_fl.engine import keys
from zo_fl.engine import statistics as batch_statistics
from zo_fl.engine.cohorts import largest_remainder, make_sampler
from zo_fl.engine.errors import ConfigError, FieldError
from zo_fl.engine.fields import Block, Field, Rule, changed, take
from zo_fl.engine.phase import Phase, Problem, as_trained, group_of
from zo_fl.engine.strategy import Aggregation, Group, SampleCohort
from zo_fl.engine.types import HIGH, Array, Cohort, ServerState
from zo_fl.sgd import client as first_order
from zo_fl.sgd.client import LOCAL_SGD, LocalSGD, LocalTraining
from zo_fl.sgd.slices import mean_over_holders, slice_strategy

WIDTHS = {"a": 1.0, "b": 1 / 2, "c": 1 / 4, "d": 1 / 8, "e": 1 / 16}
ASSIGNMENTS = ("tier", "dynamic")
STATISTICS_BATCH = 500


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
        "assignment": Field("tier", "of levels; dynamic: re-drawn every round", ASSIGNMENTS),
        **changed(LOCAL_SGD, lr=0.1, momentum=0.9, weight_decay=5e-4, loss="masked"),
        "milestones": Field((200, 400), "rounds after which lr is divided by 10", rule=_MILESTONES),
        "clip_norm": Field(1.0, "largest norm of a client's gradient; 0 = any", at_least=0),
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
    strategies = [group.strategy for group in groups]
    finalize = mean_over_holders(strategies, problem.task.head)
    pools = problem.task.has_statistics
    phase = Phase(
        "heterofl",
        heterofl["num_rounds"],
        groups,
        Aggregation(finalize=finalize),
        optax.sgd(1.0),
        batch_statistics.pooled(problem, STATISTICS_BATCH) if pools else as_trained,
        needs_all_data=pools,
    )
    return (phase,)


def _level(
    problem: Problem, block: Mapping[str, Any], index: int, eligible, size: int, sample
) -> Group:
    """Returns the group of one level: who is in it, and how they train."""
    levels, fields = block["levels"], take(LocalSGD, block)
    width = WIDTHS[levels[index]]
    task = problem.task if width == 1.0 else problem.narrow_task(width)

    def training(state: ServerState) -> LocalTraining:
        decays = jnp.sum(state.round_idx >= jnp.array(block["milestones"], jnp.int32))
        optimizer = optax.chain(
            optax.clip_by_global_norm(block["clip_norm"])
            if block["clip_norm"]
            else optax.identity(),
            first_order.sgd(fields.lr * 0.1**decays, fields.momentum, fields.weight_decay),
        )
        return first_order.local_training(problem, fields, optimizer)

    strategy = slice_strategy(
        task.with_precision(fields.precision),
        training,
        level=index,
        num_levels=len(levels),
    )
    passes = lambda clients, examples: clients * examples * fields.local_epochs  # noqa: E731
    group = group_of(problem, strategy, passes, eligible, size, sample, trains=True)
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


def _dealt(num_clients: int, start: int, count: int) -> SampleCohort:
    """Returns a sampler of ``count`` clients from place ``start`` of a round's shuffled clients."""

    def sample(round_key: Array) -> Cohort:
        order = jax.random.permutation(keys.stream(round_key, "levels"), num_clients)
        ids = jnp.sort(order[start : start + count]).astype(jnp.int32)
        return Cohort(ids, jnp.ones(count, bool))

    return sample
