"""The phases around a head method's own one: all forward passes, one round each.

    moments     the high tier sends the second moments of its features
    (sums, iterations: the method's own)
    choose      clients count what each of several heads gets right of their validation examples
    calibrate   clients send a loss for each of a few temperatures, by which logits are multiplied:
                closed-form heads are right in rank, not in size, and a later phase that descends
                along cross-entropy wants both

A phase after the method's first one goes on with the strategy state of the phase before.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zo_fl.engine import cohorts, trees
from zo_fl.engine.algorithm import (
    Client,
    ClientResult,
    Keeping,
    Phase,
    Problem,
    Server,
    ServerState,
)
from zo_fl.engine.fields import Field, FieldError
from zo_fl.engine.keys import Keys
from zo_fl.engine.server import assign
from zo_fl.engine.types import Array, Params, PyTree
from zo_fl.heads import features
from zo_fl.heads.closed_form import Basis, Heads, MaybeBasis, Moments
from zo_fl.heads.features import Extractor
from zo_fl.wrap.stop import require_validation

TEMPERATURES = (2.0 ** np.arange(-3, 6.5, 0.5)).astype(np.float32)
CALIBRATE = Field(True, "fit of a temperature for cross-entropy")
SKETCH = Field(
    0, "principal directions of the high tier's features to send; 0 = all features", at_least=0
)


class Setup(NamedTuple):
    """The settings that the phases of one method share.

    Attributes:
      name: the method's.
      problem: task and clients.
      look: how clients compute features.
      keeping: how features are kept.
      once: rounds of the phases before and after the method's own: 1, or 0 if that has none.
      start: makes the first strategy state.
    """

    name: str
    problem: Problem
    look: Extractor
    keeping: Keeping
    once: int
    start: Callable[[], PyTree]

    def fresh(self, params: Params, before: PyTree) -> PyTree:
        """Returns the strategy state at the start of the method's first phase."""
        return self.start()

    def continued(self, params: Params, before: PyTree) -> PyTree:
        """Returns the strategy state at the start of a later phase: that of the phase before."""
        return self.start() if before is None else before

    def phase(
        self,
        name: str,
        rounds: int,
        client: Client,
        server: Server,
        forward_passes: Callable[[float, float], float],
        who: Mapping[str, Any] = cohorts.EVERYONE,
    ) -> Phase:
        """Returns a phase; the arguments are those of ``cohorts.make_group`` and ``Phase``."""
        group = cohorts.make_group(self.problem, client, forward_passes, who)
        group = group._replace(keeping=self.keeping)
        return Phase(f"{self.name} {name}", rounds, (group,), server)


def in_order(setup: Setup, *phases: Phase) -> tuple[Phase, ...]:
    """Returns the phases of a method; the last has its name, single rounds before only prepare."""
    *before, last = phases
    before = [p._replace(evaluated=None) if p.num_rounds <= 1 else p for p in before]
    return (*before, last._replace(name=setup.name))


def high_tier_moments(
    setup: Setup,
    name: str,
    learn: Callable[[Moments, ServerState, Keys], tuple[Params, PyTree]],
) -> Phase:
    """Returns the phase in which the high tier sends the second moments of its features.

    Args:
      setup: the method's.
      name: the phase's.
      learn: ``(moments, state, keys) -> (params, strategy_state)``, the server's part.
    """
    client = Client(partial(_send_moments, setup.look), one_model=True)
    server = assign(learn, init=setup.fresh)
    who = cohorts.EVERYONE | {"tiers": "high"}
    return setup.phase(name, setup.once, client, server, features.passes(), who)


def _send_moments(look: Extractor, state, batch, own) -> ClientResult:
    sums = features.moments(look, state, batch)
    return ClientResult(sums, features.weight(batch, sums), model_state={}, metrics={})


def best_head(setup: Setup) -> Phase:
    """Returns the phase in which clients choose one of ``heads`` of the strategy state."""
    return _asking(
        setup, "choose", _count_right, _take_best, lambda state: state.strategy_state.heads
    )


def temperature(setup: Setup) -> Phase:
    """Returns the phase in which clients fit the temperature of the head in the parameters.

    Raises:
      FieldError: clients have no validation examples.
    """
    if setup.once:
        require_validation(setup.problem, "calibrate", "=True")
    head = setup.look.task.head
    return _asking(
        setup, "calibrate", _losses_when_scaled, _scale_logits, lambda state: state.params[head]
    )


def _asking(
    setup: Setup,
    name: str,
    update: Callable[..., ClientResult],
    function: Callable[..., tuple[Params, PyTree]],
    receives: Callable[[ServerState], PyTree],
) -> Phase:
    """Returns a phase in which all clients look at their validation examples.

    Args:
      setup: the method's.
      name: the phase's.
      update: ``(look, state, batch, keys) -> ClientResult``.
      function: ``(name of the last layer, sum, state, keys) -> (params, strategy_state)``.
      receives: see ``Client``.
    """
    problem = setup.problem
    asked = setup._replace(problem=problem._replace(clients=problem.validation or problem.clients))
    client = Client(partial(update, setup.look), receives=receives, one_model=True)
    server = assign(partial(function, setup.look.task.head), init=setup.continued)
    phase = asked.phase(name, setup.once, client, server, features.passes())
    return phase._replace(groups=(phase.groups[0]._replace(on_validation=True),))


def _count_right(look: Extractor, state, batch, own) -> ClientResult:
    """Returns ``i32[L]``, the client's examples that each head gets right."""
    heads: Heads = state.strategy_state.heads

    def add(counts, seen, labels):
        logits = jnp.einsum("nd,ldc->nlc", seen, heads.kernel, precision="highest")
        logits = logits + heads.bias[None]
        right = jnp.argmax(logits, axis=-1) == jnp.argmax(labels, axis=-1)[:, None]
        # A head that could not be solved for predicts nothing.
        right &= jnp.all(jnp.isfinite(logits), axis=-1) & (labels.sum(-1) > 0)[:, None]
        return counts + right.sum(0, dtype=jnp.int32)

    zeros = jnp.zeros(heads.bias.shape[0], jnp.int32)
    counts = features.sum_over(look, state, batch, add, zeros)
    return ClientResult(counts, features.weight(batch, counts), model_state={}, metrics={})


def _take_best(head: str, counts: Array, state: ServerState, of_round: Keys):
    kernel, bias = (leaf[jnp.argmax(counts)] for leaf in state.strategy_state.heads)
    return state.params | {head: {"kernel": kernel, "bias": bias}}, state.strategy_state


def _losses_when_scaled(look: Extractor, state, batch, own) -> ClientResult:
    """Returns ``f32[T]``, the sum of the client's losses at each temperature."""
    head = state.params[look.task.head]

    def add(losses, seen, labels):
        logits = seen @ head["kernel"] + head["bias"][None]
        scaled = logits[:, None] * jnp.asarray(TEMPERATURES)[None, :, None]
        each = -jnp.sum(jax.nn.log_softmax(scaled) * labels[:, None], axis=-1)
        return losses + each.sum(0)

    losses = features.sum_over(look, state, batch, add, jnp.zeros(len(TEMPERATURES)))
    return ClientResult(losses, features.weight(batch, losses), model_state={}, metrics={})


def _scale_logits(head: str, losses: Array, state: ServerState, of_round: Keys):
    # Without any answer the head stays.
    best = jnp.where(losses.sum() > 0, jnp.asarray(TEMPERATURES)[jnp.argmin(losses)], 1.0)
    scaled = trees.scale_down(state.params[head], 1 / best)
    return state.params | {head: scaled}, state.strategy_state


def check_sketch(size: int, dim: int) -> None:
    """Checks the size of a sketch.

    Raises:
      FieldError: more directions than the model has features.
    """
    if size > dim:
        raise FieldError(
            "sketch", f"={size} is more than the model's {dim} features; allowed: 0 to {dim}"
        )


def no_basis(size: int, dim: int) -> MaybeBasis:
    """Returns the basis of a first strategy state: zeros, or ``()`` without a sketch."""
    return Basis(jnp.zeros(dim), jnp.zeros((dim, size))) if size else ()
