"""Choosing among heads by what clients count on their validation examples, forward passes only.

A client answers with one integer a head: how many of its examples it gets right. Afterwards it may
answer with one loss for each of a few temperatures, by which the chosen head's logits are
multiplied: closed-form heads are right in rank, not in size, and a later phase that descends along
cross-entropy wants both.
"""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from zo_fl.engine import trees
from zo_fl.engine.errors import ConfigError
from zo_fl.engine.fields import Rule
from zo_fl.engine.phase import Keeping, Participation, Phase, Problem, make_group
from zo_fl.engine.strategy import (
    Aggregation,
    Assign,
    ClientStrategy,
    ClientUpdate,
    Group,
    InitStrategyState,
    Receives,
)
from zo_fl.engine.types import Array, ClientBatch, ClientResult, Params, PyTree, ServerState
from zo_fl.heads import features
from zo_fl.heads.closed_form import Heads
from zo_fl.heads.features import Looking

TEMPERATURES = (2.0 ** np.arange(-3, 6.5, 0.5)).astype(np.float32)

SOME = Rule(lambda: "one number or more, none below 0", bool)  # to choose from

HeadsOf = Callable[[ServerState], Heads]  # the candidates in a state


def set_head(params: Params, name: str, kernel: Array, bias: Array) -> Params:
    """Returns parameters with another last layer."""
    return params | {name: {"kernel": kernel, "bias": bias}}


def with_middle(head: str, state: ServerState, heads: Heads, class_counts: Array) -> Params:
    """Returns parameters with the middle one of some candidates, until one is chosen.

    Where that is not finite, as rounded sums may want a larger penalty than its, the nearest one
    that is, rather a later one; if there is none, the head is not finite, which stops a run.

    Args:
      head: name of the last layer.
      state: the server's, whose head stays while nothing was counted.
      heads: the candidates.
      class_counts: ``f32[C]`` examples that they were made from.
    """
    count = heads.bias.shape[0]
    away = np.arange(count) - count // 2
    usable = jnp.isfinite(heads.kernel).all((1, 2)) & jnp.isfinite(heads.bias).all(1)
    middle = jnp.argmin(jnp.where(usable, 2 * np.abs(away) - (away > 0), 2 * count))
    anyone = class_counts.sum() > 0
    old = state.params[head]
    kernel = jnp.where(anyone, heads.kernel[middle], old["kernel"])
    return set_head(state.params, head, kernel, jnp.where(anyone, heads.bias[middle], old["bias"]))


def phases(
    problem: Problem,
    name: str,
    looking: Looking,
    *,
    init: InitStrategyState,
    rounds: int,
    heads_of: Callable[[PyTree], Heads] | None = None,
    calibrate: bool,
    keeping: Keeping,
) -> tuple[Phase, ...]:
    """Returns the phases that end a method which leaves candidates in its strategy state.

    Args:
      problem: task and clients.
      name: the method's, with which theirs begin.
      looking: how clients compute features.
      init: of the strategy state.
      rounds: 1, or 0 for none of these phases.
      heads_of: ``strategy_state -> Heads`` to choose from; None where there is no choice.
      calibrate: whether a temperature is wanted.
      keeping: of the phase before.

    Raises:
      ConfigError: one of them is wanted, and clients have no validation examples.
    """
    found = []
    if rounds and heads_of is not None:
        group = counting(problem, name, looking, lambda state: heads_of(state.strategy_state))
        assign = _choosing(problem.task.head, heads_of)
        found.append((f"{name} choose", group, assign))
    if rounds and calibrate:
        found.append((f"{name} calibrate", *_calibrating(problem, name, looking)))
    return tuple(
        Phase(
            step,
            rounds,
            (group,),
            Aggregation(init=init, reduce="sum", assign=assign),
            None,
            continues=True,
            on_validation=True,
            keeping=keeping,
        )
        for step, group, assign in found
    )


def in_order(name: str, phases: Iterable[Phase]) -> tuple[Phase, ...]:
    """Returns the phases of a method; the last one takes its name, single rounds before prepare."""
    *before, last = phases
    before = [phase._replace(prepares=phase.num_rounds <= 1) for phase in before]
    return (*before, last._replace(name=name))


def counting(
    problem: Problem, name: str, looking: Looking, heads_of: HeadsOf, kept: bool = False
) -> Group:
    """Returns all clients, who count what some heads get right of their validation examples.

    A message is ``i32[L]``, one number a head.

    Args:
      problem: task and clients.
      name: of the method.
      looking: how clients compute features.
      heads_of: ``state -> Heads``, L of them; they are sent to the clients.
      kept: whether clients have kept their features, and make no pass.

    Raises:
      ConfigError: clients have no validation examples.
    """
    task = problem.task

    def client_update(state: ServerState, batch: ClientBatch, run_key) -> ClientResult:
        del run_key
        heads = heads_of(state)

        def add(counts, seen, labels):
            logits = _all_logits(heads, seen)
            right = jnp.argmax(logits, axis=-1) == jnp.argmax(labels, axis=-1)[:, None]
            # A head that could not be solved for predicts nothing.
            right &= jnp.all(jnp.isfinite(logits), axis=-1) & (labels.sum(-1) > 0)[:, None]
            return counts + right.sum(0, dtype=jnp.int32)

        count = heads.bias.shape[0]
        counts = features.sum_over(task, looking, state, batch, add, jnp.zeros(count, jnp.int32))
        accuracy = {"accuracy": counts[0] / jnp.maximum(jnp.sum(batch.mask), 1)}
        metrics = accuracy if count == 1 else {}  # of many heads none is the model's
        return ClientResult(counts, features.weight(batch, counts), {}, metrics)

    return _on_validation(problem, name, client_update, heads_of, kept)


def _on_validation(
    problem: Problem, name: str, client_update: ClientUpdate, receives: Receives, kept: bool = False
) -> Group:
    if problem.validation is None or not np.any(problem.validation.client_sizes):
        raise ConfigError(
            f"{name} chooses by the clients' validation examples, and config.data.val_fraction "
            f"leaves none; raise it, or leave nothing to choose: config.{name}.calibrate=false and "
            "one candidate, or no checks"
        )
    return make_group(
        problem._replace(clients=problem.validation),
        ClientStrategy(client_update, receives=receives, one_model=True),
        lambda clients, examples: 0.0 if kept else clients * examples,
        Participation(),
    )


def _choosing(head: str, heads_of: Callable[[PyTree], Heads]) -> Assign:
    def assign(counts, state: ServerState, run_key):
        del run_key
        best = jnp.argmax(counts)
        kernel, bias = (leaf[best] for leaf in heads_of(state.strategy_state))
        return set_head(state.params, head, kernel, bias), state.strategy_state

    return assign


def _calibrating(problem: Problem, name: str, looking: Looking) -> tuple[Group, Assign]:
    task = problem.task

    def client_update(state: ServerState, batch: ClientBatch, run_key) -> ClientResult:
        del run_key
        head = state.params[task.head]

        def add(losses, seen, labels):
            logits = seen @ head["kernel"] + head["bias"][None]
            scaled = logits[:, None] * jnp.asarray(TEMPERATURES)[None, :, None]
            each = -jnp.sum(jax.nn.log_softmax(scaled) * labels[:, None], axis=-1)
            return losses + each.sum(0)

        losses = features.sum_over(task, looking, state, batch, add, jnp.zeros(len(TEMPERATURES)))
        return ClientResult(losses, features.weight(batch, losses), {}, {})

    def assign(losses, state: ServerState, run_key):
        del run_key
        # Nobody answered: as it was.
        best = jnp.where(losses.sum() > 0, jnp.asarray(TEMPERATURES)[jnp.argmin(losses)], 1.0)
        head = trees.scale_down(state.params[task.head], 1 / best)
        return state.params | {task.head: head}, state.strategy_state

    def receives(state: ServerState):
        return state.params[task.head]

    return _on_validation(problem, name, client_update, receives), assign


def _all_logits(heads: Heads, seen: Array) -> Array:
    """Returns ``f32[n, L, C]`` of features ``f32[n, d]``."""
    product = jnp.einsum("nd,ldc->nlc", seen, heads.kernel, precision="highest")
    return product + heads.bias[None]
