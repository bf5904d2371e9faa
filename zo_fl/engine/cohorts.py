"""Cohorts: the clients of a round and their examples, drawn inside ``jit`` from keys alone.

round key -> ``make_sampler`` -> Cohort -> ``gather`` -> ClientBatch -> ``epoch_order`` -> batches
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zo_fl.engine import keys
from zo_fl.engine.algorithm import TIERS, Client, ClientBatch, Cohort, Group, Problem
from zo_fl.engine.fields import Block, Field, FieldError
from zo_fl.engine.types import HIGH, LOW, Array, FederatedData, PyTree

# A permutation of fewer clients costs nothing, and draws the cohorts that it always drew.
LARGE = 1 << 15
_PADDED = 1024  # examples that a batch is padded to, at most, where a client has fewer
PARTICIPATION = ("uniform", "stratified")
EVERYONE = {"cohort_size": 0, "tiers": "all", "participation": "uniform"}

FIELDS: Block = {
    "cohort_size": Field(
        0, "clients a round; all: everyone who may take part", at_least=1, zero="all"
    ),
    "tiers": Field("all", "tiers that may take part", tuple(TIERS)),
    "participation": Field("uniform", "draw of a cohort, or stratified by tier", PARTICIPATION),
}

Sampler = Callable[[Array], Cohort]


def is_ragged(problem: Problem) -> bool:
    """Returns whether clients have unequal numbers of examples: some batches are all padding."""
    sizes = np.asarray(problem.clients.client_sizes)
    return bool(sizes.min() < sizes.max())


def if_any(mask: Array, function: Callable[[], PyTree], otherwise: Callable[[], PyTree]) -> PyTree:
    """Returns ``function()`` of a batch with a real example; else ``otherwise()``, in no time.

    One large client decides how long the loops of all are. Where clients are mapped over, XLA
    computes both.
    """
    return jax.lax.cond(jnp.any(mask), function, otherwise)


def make_group(
    problem: Problem,
    client: Client,
    forward_passes: Callable[[float, float], float],
    who: Mapping[str, Any],
    trains: bool = False,
) -> Group:
    """Returns a group of clients of some tiers.

    Args:
      problem: the population.
      client: what each of them does.
      forward_passes: ``(clients, mean examples of one) -> passes a round``.
      who: has ``FIELDS``.
      trains: whether a backward pass follows each forward one.

    Raises:
      FieldError: a cohort larger than those who may take part, or nobody may.
    """
    eligible, size = eligible_clients(problem, who["tiers"]), who["cohort_size"]
    tiers = np.asarray(problem.clients.client_tiers)
    sample = make_sampler(eligible, size, tiers, who["participation"])
    size = size or len(eligible)
    return group_of(problem, client, forward_passes, eligible, size, sample, trains)


def group_of(
    problem: Problem,
    client: Client,
    forward_passes: Callable[[float, float], float],
    eligible: np.ndarray,
    cohort_size: int,
    sample_cohort: Sampler,
    trains: bool = False,
) -> Group:
    """Returns the group that ``sample_cohort`` draws from the clients ``eligible`` ``i32[E]``."""
    examples = float(np.asarray(problem.clients.client_sizes)[eligible].mean())
    passes = forward_passes(cohort_size, examples)
    return Group(client, sample_cohort, cohort_size, passes, eligible, passes if trains else 0.0)


def eligible_clients(problem: Problem, tiers: str) -> np.ndarray:
    """Returns ``i32[E]``, the ids of the clients of some tiers, a key of ``TIERS``."""
    client_tiers = np.asarray(problem.clients.client_tiers)
    return np.flatnonzero(np.isin(client_tiers, TIERS[tiers])).astype(np.int32)


def cohort_size(problem: Problem, who: Mapping[str, Any]) -> int:
    """Returns the number of clients a round; ``who`` has ``FIELDS``."""
    return who["cohort_size"] or len(eligible_clients(problem, who["tiers"]))


def make_sampler(
    eligible: np.ndarray, cohort_size: int, tiers: np.ndarray, participation: str
) -> Sampler:
    """Returns ``round_key -> Cohort``, for use inside ``jit``; ids are sorted.

    Args:
      eligible: ``i32[E]`` ids of the clients that may take part, without repetition.
      cohort_size: clients a round; 0 = all eligible ones, every round.
      tiers: ``i32[K]`` tier of each client of the population.
      participation: ``"uniform"``: any ``cohort_size`` eligible clients, without replacement.
        ``"stratified"``: each tier has its share of the cohort (largest remainder; the high tier
        first on a tie) and is sampled uniformly within.

    Raises:
      FieldError: nobody is eligible, or a cohort larger than the eligible clients.
    """
    eligible = np.sort(np.asarray(eligible, np.int32))
    _check(len(eligible), cohort_size)
    size = cohort_size or len(eligible)
    if size == len(eligible) or participation == "uniform":
        groups, counts = [eligible], [size]
    else:
        tier = np.asarray(tiers)[eligible]
        groups = [eligible[tier == HIGH], eligible[tier == LOW]]
        counts = largest_remainder(size, [len(group) for group in groups])

    def sample(round_key: Array) -> Cohort:
        key = keys.stream(round_key, "cohort")
        drawn = [
            _draw(jax.random.fold_in(key, stratum), group, count)
            for stratum, (group, count) in enumerate(zip(groups, counts, strict=True))
        ]
        ids = jnp.sort(jnp.concatenate(drawn))
        return Cohort(ids, jnp.ones(size, bool))

    return sample


def largest_remainder(total: int, sizes: list[int]) -> list[int]:
    """Returns each group's share of ``total <= sum(sizes)`` places, in proportion to its size.

    Whole places first, then one each to the largest remainders; ties go to the earlier group.
    """
    counts = [total * size // sum(sizes) for size in sizes]
    remainders = [total * size % sum(sizes) for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda group: -remainders[group])
    for group in by_remainder[: total - sum(counts)]:
        counts[group] += 1
    return counts


def _draw(key: Array, group: np.ndarray, count: int) -> Array:
    """Returns ``i32[count]`` members of a group ``i32[E]``, without replacement."""
    members = jnp.asarray(group)
    if count == len(group):
        return members
    if len(group) < LARGE or 4 * count > len(group):
        return jax.random.permutation(key, members)[:count]
    return members[distinct(key, count, len(group))]


def distinct(key: Array, count: int, below: int) -> Array:
    """Returns ``i32[count]`` different numbers in [0, below), all choices of them equally likely.

    They are the first different ones of 2 count + 64 draws with replacement, so the time depends on
    the count alone. That there are too few has a probability under 1e-30 if 4 count <= below.
    """
    draws = jax.random.randint(key, (2 * count + 64,), 0, below)
    order = jnp.argsort(draws, stable=True)
    is_new = jnp.concatenate([jnp.ones(1, bool), jnp.diff(draws[order]) != 0])
    (places,) = jnp.nonzero(jnp.zeros_like(is_new).at[order].set(is_new), size=count)
    return draws[places]


def _check(num_eligible: int, cohort_size: int) -> None:
    if num_eligible == 0:
        raise FieldError(
            "cohort_size",
            f"={cohort_size or 'all'}: no client is eligible; raise config.data.high_fraction or "
            "allow all tiers",
        )
    if cohort_size > num_eligible:
        raise FieldError(
            "cohort_size",
            f"={cohort_size} is outside what is allowed: 1 to {num_eligible} (the eligible "
            "clients), or all",
        )


def gather(data: FederatedData, client_ids: Array) -> ClientBatch:
    """Returns all examples of the clients ``i32[C]``: a ``ClientBatch`` with a leading ``C``."""
    rows = data.client_indices[client_ids]
    sizes = data.client_sizes[client_ids]
    mask = jnp.arange(rows.shape[1])[None, :] < sizes[:, None]
    return ClientBatch(
        client_id=client_ids,
        tier=data.client_tiers[client_ids],
        examples=jax.tree.map(lambda leaf: leaf[rows], data.examples),
        mask=mask,
    )


def epoch_order(key: Array, mask: Array, batch_size: int) -> tuple[Array, Array]:
    """Returns one epoch of shuffled mini-batches: each real example once, then padding.

    A client with few examples has batches that are all padding: the caller must make such a step
    change nothing.

    Args:
      key: ``key[]``.
      mask: ``bool[n]``, True for a real example.
      batch_size: examples a batch, at least 1; static.

    Returns:
      ``(indices, batch_mask)``: ``i32[ceil(n / batch_size), batch_size]`` rows of the client's
      arrays, any row where the mask is False; and ``bool`` of the same shape. A batch size far
      above n is less.
    """
    (n,) = mask.shape
    # Padding takes time and memory; a little of it stays, for its sums have digits of their own.
    batch_size = min(batch_size, max(n, _PADDED))
    num_batches = -(-n // batch_size)
    # One sort by (padding, 32 random bits) instead of a permutation and a second, stable sort.
    padding = jnp.logical_not(mask).astype(jnp.int32)
    rows = jnp.arange(n, dtype=jnp.int32)
    padding, _, order = jax.lax.sort((padding, jax.random.bits(key, (n,)), rows), num_keys=2)
    spare = (0, num_batches * batch_size - n)
    shape = (num_batches, batch_size)
    return jnp.pad(order, spare).reshape(shape), jnp.pad(padding == 0, spare).reshape(shape)


def batched(tree: PyTree, size: int) -> PyTree:
    """Returns leaves ``[n, ...]`` as ``[ceil(n / size), size, ...]``, padded with zeros."""

    def one(leaf):
        padded = jnp.pad(leaf, [(0, -leaf.shape[0] % size)] + [(0, 0)] * (leaf.ndim - 1))
        return padded.reshape(-1, size, *leaf.shape[1:])

    return jax.tree.map(one, tree)
