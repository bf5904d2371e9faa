"""What is wrong with the numbers of a round's clients, and what becomes of a round without any."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from zo_fl.engine import reduction
from zo_fl.engine.algorithm import ClientResult, Cohort, Reducer, ServerState
from zo_fl.engine.reduction import RoundRecord
from zo_fl.engine.types import Array


def is_finite(result: ClientResult) -> Array:
    """Returns ``bool[]``, whether message, statistics and metrics of a client are finite."""
    leaves = jax.tree.leaves((result.message, result.model_state, result.metrics))
    # Zero times what is finite is zero: a sum takes a quarter of the time of a conjunction.
    return jnp.isfinite(jnp.sum(jnp.stack([jnp.sum(0.0 * leaf) for leaf in leaves])))


def unless_empty(weights: Sequence[Array], new: ServerState, old: ServerState) -> ServerState:
    """Returns the new state; the old one, a round later, if nobody's answer counts."""
    stays = old._replace(round_idx=new.round_idx)
    return jax.tree.map(lambda a, b: jnp.where(reduction.add(*weights) > 0, a, b), new, stays)


def metrics(
    reducer: Reducer,
    cohorts: Sequence[Cohort],
    bad: Sequence[Array],
    records: Sequence[RoundRecord],
    weights: Sequence[Array],
) -> dict[str, Array]:
    """Returns metrics ``f32[]`` of what is wrong with a round's messages; see ``host.record``.

    Args:
      reducer: the server's.
      cohorts: one a group, as are the others.
      bad: ``bool[C]``, who sent what is not finite.
      records: what was sent, where messages are scalars.
      weights: ``f32[]``, the sum over clients.
    """
    is_empty = (reduction.add(*weights) == 0) & reducer.tolerant
    ids = jnp.concatenate([cohort.client_ids for cohort in cohorts])
    flags = jnp.concatenate(bad)
    scalars = [
        jnp.any((leaf != 0).reshape(len(leaf), -1), axis=1) & (record.weights > 0)
        for record in records
        for leaf in jax.tree.leaves(record.messages)
        if jnp.issubdtype(leaf.dtype, jnp.floating)  # whole numbers may well be zero
    ]
    all_zero = ~jnp.any(jnp.concatenate(scalars)) & ~is_empty if scalars else jnp.bool(False)
    found = {
        "bad_clients": jnp.sum(flags),
        "first_bad_client": jnp.min(jnp.where(flags, ids, jnp.iinfo(ids.dtype).max)),
        "all_zero": all_zero,
        "is_empty": is_empty,
    }
    return {name: value.astype(jnp.float32) for name, value in found.items()}
