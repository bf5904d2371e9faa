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

from zo_fl.clients import features
from zo_fl.clients.features import Looking
from zo_fl.core import trees
from zo_fl.core.closed_form import Heads
from zo_fl.core.errors import ConfigError
from zo_fl.core.fields import Rule
from zo_fl.core.phase import Keeping, Participation, Phase, Problem, make_group
from zo_fl.core.strategy import Aggregation, ClientStrategy, InitStrategyState
from zo_fl.core.types import Array, ClientBatch, ClientResult, Params, PyTree, ServerState

TEMPERATURES = (2.0 ** np.arange(-3, 6.5, 0.5)).astype(np.float32)

SOME = Rule(lambda: "one number or more, none below 0", bool)  # to choose from

HeadsOf = Callable[[PyTree], Heads]  # strategy_state -> candidates


def set_head(params: Params, name: str, kernel: Array, bias: Array) -> Params:
    """Returns parameters with another last layer."""
    return params | {name: {"kernel": kernel, "bias": bias}}


def with_middle(head: str, state: ServerState, heads: Heads, class_counts: Array) -> Params:
    """Returns parameters with the middle one of some candidates, until one is chosen.

    Args:
      head: name of the last layer.
      state: the server's, whose head stays while nothing was counted.
      heads: the candidates.
      class_counts: ``f32[C]`` examples that they were made from.
    """
    middle = heads.bias.shape[0] // 2
    anyone = class_counts.sum() > 0
    old = state.params[head]
    kernel = jnp.where(anyone, heads.kernel[middle], old["kernel"])
    return set_head(state.params, head, kernel, jnp.where(anyone, heads.bias[middle], old["bias"]))


def phases(
    problem: Problem,
    name: str,
    looking: Looking,
    heads_of: HeadsOf,
    init: InitStrategyState,
    *,
    rounds: int,
    choose: bool,
    calibrate: bool,
    keeping: Keeping,
) -> tuple[Phase, ...]:
    """Returns the phases that end a method which leaves candidates in its strategy state.

    Args:
      problem: task and clients.
      name: the method's, with which theirs begin.
      looking: how clients compute features.
      heads_of: ``strategy_state -> Heads``.
      init: of the strategy state.
      rounds: 1, or 0 for none of these phases.
      choose: whether there are several candidates.
      calibrate: whether a temperature is wanted.
      keeping: of the phase before.

    Raises:
      ConfigError: one of them is wanted, and clients have no validation examples.
    """
    if rounds and (choose or calibrate):
        _require_validation(problem, name)
    wanted = {"choose": choose, "calibrate": calibrate}
    makers = {"choose": _choosing, "calibrate": _calibrating}
    return tuple(
        _phase(problem, f"{name} {step}", rounds, makers[step], looking, heads_of, init)._replace(
            keeping=keeping
        )
        for step, is_wanted in wanted.items()
        if is_wanted
    )


def in_order(name: str, phases: Iterable[Phase]) -> tuple[Phase, ...]:
    """Returns the phases of a method; the last one takes its name, single rounds before prepare."""
    *before, last = phases
    before = [phase._replace(prepares=phase.num_rounds <= 1) for phase in before]
    return (*before, last._replace(name=name))


def _require_validation(problem: Problem, name: str) -> None:
    if problem.validation is None or not np.any(problem.validation.client_sizes):
        raise ConfigError(
            f"{name} chooses by the clients' validation examples, and config.data.val_fraction "
            f"leaves none; raise it, or give one penalty and set config.{name}.calibrate=false"
        )


def _phase(problem, name, rounds, make, looking, heads_of, init) -> Phase:
    strategy, assign = make(problem.task, looking, heads_of)
    assert problem.validation is not None
    problem = problem._replace(clients=problem.validation)
    group = make_group(
        problem, strategy, lambda clients, examples: clients * examples, Participation()
    )
    aggregation = Aggregation(init=init, reduce="sum", assign=assign)
    return Phase(name, rounds, (group,), aggregation, None, continues=True, on_validation=True)


def _choosing(task, looking: Looking, heads_of: HeadsOf):
    def client_update(state: ServerState, batch: ClientBatch, run_key) -> ClientResult:
        del run_key
        heads = heads_of(state.strategy_state)
        labels_of = lambda labels: jnp.argmax(labels, axis=-1)  # noqa: E731

        def add(counts, seen, labels):
            logits = _all_logits(heads, seen)
            right = jnp.argmax(logits, axis=-1) == labels_of(labels)[:, None]
            # A head that could not be solved for predicts nothing.
            right &= jnp.all(jnp.isfinite(logits), axis=-1) & (labels.sum(-1) > 0)[:, None]
            return counts + right.sum(0, dtype=jnp.int32)

        count = heads.bias.shape[0]
        counts = features.sum_over(task, looking, state, batch, add, jnp.zeros(count, jnp.int32))
        return ClientResult(counts, features.weight(batch, counts), {}, {})

    def assign(counts, state: ServerState, run_key):
        del run_key
        heads = heads_of(state.strategy_state)
        best = jnp.argmax(counts)
        kernel, bias = (leaf[best] for leaf in heads)
        return set_head(state.params, task.head, kernel, bias), state.strategy_state

    def receives(state: ServerState):
        return heads_of(state.strategy_state)

    return ClientStrategy(client_update, receives=receives, one_model=True), assign


def _calibrating(task, looking: Looking, heads_of: HeadsOf):
    del heads_of

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

    return ClientStrategy(client_update, receives=receives, one_model=True), assign


def _all_logits(heads: Heads, seen: Array) -> Array:
    """Returns ``f32[n, L, C]`` of features ``f32[n, d]``."""
    product = jnp.einsum("nd,ldc->nlc", seen, heads.kernel, precision="highest")
    return product + heads.bias[None]
