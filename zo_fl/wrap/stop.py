"""A phase that ends where what clients get right of their validation examples stops rising.

    fixed        all rounds
    plateau      the tier that trains is asked
    population   everyone is asked: one forward pass and one integer a client, every few rounds

The tier that trains knows the labels that it holds, and goes on gaining on these while the others
lose: the population's answer is the better one where labels are skewed. Questions come early and
patience is short, as rounds too many cost more than rounds too few (figures: PERFORMANCE.md).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zo_fl.engine.errors import FieldError
from zo_fl.engine.fields import Block, Field
from zo_fl.engine.phase import Check, Participation, Phase, Problem, make_group
from zo_fl.engine.strategy import Aggregation, ClientStrategy
from zo_fl.engine.types import Array, ClientBatch, ClientResult, Params, ServerState

STOPS = ("fixed", "plateau", "population")
_AT_ONCE = 128  # examples of a forward pass

FIELDS: Block = {
    "stop": Field("fixed", "where it ends: zo_fl/wrap/stop.py", STOPS),
    "check_every": Field(2, "rounds between questions, unless stop is fixed", at_least=1),
    "patience": Field(2, "questions without a better answer after which it ends", at_least=1),
    "hand_over": Field(False, "the run's last phase takes the rounds that are saved"),
}


class Watch(NamedTuple):
    """What is remembered between questions.

    Attributes:
      best: ``i32[]`` most examples that were right.
      waited: ``i32[]`` questions since then.
    """

    best: Array
    waited: Array


def watched(problem: Problem, phase: Phase, block: Mapping[str, Any]) -> Phase:
    """Returns a phase that ends as its config block says.

    Args:
      problem: task and clients.
      phase: keeps nothing between rounds.
      block: has ``FIELDS`` and ``tiers``.

    Raises:
      FieldError: nobody who is asked has validation examples.
    """
    if block["stop"] == "fixed":
        return phase
    tiers = "all" if block["stop"] == "population" else block["tiers"]
    if problem.validation is None or not np.any(problem.validation.client_sizes):
        raise FieldError(
            "stop",
            f"={block['stop']!r} asks about validation examples, and config.data.val_fraction "
            "leaves none; raise it",
        )
    group = make_group(
        problem._replace(clients=problem.validation),
        ClientStrategy(_counting(problem), one_model=True),
        lambda clients, examples: clients * examples,
        Participation(tiers=tiers),
    )

    def assign(count, state: ServerState, run_key):
        del run_key
        count, known = count.astype(jnp.int32), state.strategy_state
        is_better = count > known.best
        return state.params, Watch(
            jnp.maximum(count, known.best), jnp.where(is_better, 0, known.waited + 1)
        )

    asked = Aggregation(init=_start, reduce="sum", assign=assign)
    question = Phase(f"{phase.name} check", 1, (group,), asked, None, on_validation=True)
    check = Check(
        question,
        block["check_every"],
        lambda watch: watch.waited >= block["patience"],
        block["hand_over"],
    )
    return phase._replace(aggregation=phase.aggregation._replace(init=_start), check=check)


def _start(params: Params) -> Watch:
    del params
    return Watch(jnp.int32(-1), jnp.int32(0))


def _counting(problem: Problem):
    """Returns what a client does: counts what the model gets right, some examples at a time."""
    task = problem.task

    def client_update(state: ServerState, batch: ClientBatch, run_key) -> ClientResult:
        del run_key
        count = max(batch.mask.shape[0], 1)
        size = min(_AT_ONCE, count)

        def cut(leaf):
            padded = jnp.pad(leaf, [(0, -leaf.shape[0] % size)] + [(0, 0)] * (leaf.ndim - 1))
            return padded.reshape(-1, size, *leaf.shape[1:])

        def right(part):
            examples, mask = part
            logits, _ = task.logits(state.params, state.model_state, examples, mask, False)
            return jnp.sum((jnp.argmax(logits, axis=-1) == task.labels(examples)) & mask)

        parts = jax.tree.map(cut, (batch.examples, batch.mask))
        found = jnp.sum(jax.lax.map(right, parts))
        held = jnp.sum(batch.mask).astype(jnp.float32)
        return ClientResult(found, held, {}, {"accuracy": found / jnp.maximum(held, 1)})

    return client_update
