"""The phases before and after a head method's own: forward passes only, one round each.

    moments     the high tier sends the second moments of its features
    (sums, iterations: the method's own)
    choose      clients count the validation examples that each of several heads gets right
    calibrate   clients send a loss for each of a few temperatures, by which logits are multiplied:
                closed-form heads are right in rank, not in size, and a later phase that descends
                along cross-entropy wants both

Each phase goes on with the strategy state of the phase before.
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
from zo_fl.engine.fields import Field
from zo_fl.engine.keys import Keys
from zo_fl.engine.server import assign
from zo_fl.engine.types import Array, Params, PyTree
from zo_fl.heads import features
from zo_fl.heads.closed_form import Heads, Moments
from zo_fl.heads.features import Extractor
from zo_fl.wrap.stop import require_validation

TEMPERATURES = (2.0 ** np.arange(-3, 6.5, 0.5)).astype(np.float32)
HIGH_TIER = cohorts.EVERYONE | {"tiers": "high"}
CALIBRATE = Field(True, "fit of a temperature for cross-entropy")
SKETCH = Field(
    0, "principal directions of the high tier's features to send", at_least=1, zero="all"
)


class Setup(NamedTuple):
    """The settings that the phases of one method share.

    Attributes:
      rounds: of the method's own phase.
      start: makes the first strategy state.
    """

    name: str
    problem: Problem
    extractor: Extractor
    keeping: Keeping
    rounds: int
    start: Callable[[], PyTree]

    @property
    def once(self) -> int:
        """Rounds of the phases before and after the method's own: 1, or 0 if that has none."""
        return min(self.rounds, 1)

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
        **of_group: Any,
    ) -> Phase:
        """Returns a phase of one group; ``of_group`` sets attributes of ``Group``."""
        group = cohorts.make_group(self.problem, client, forward_passes, who)
        group = group._replace(keeping=self.keeping, **of_group)
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
    """Returns the phase in which the server learns from the high tier's second moments.

    They are of features from those of a blank example on, which takes one more pass.
    """
    client = Client(partial(_send_moments, setup.extractor), one_model=True)
    server = assign(learn, init=setup.fresh)
    return setup.phase(name, setup.once, client, server, features.passes(more=1), HIGH_TIER)


def _send_moments(extractor: Extractor, state, batch, own) -> ClientResult:
    basis = features.around_blank(extractor, state)
    return features.result(batch, features.moments(extractor, state, batch, basis))


def best_head(setup: Setup) -> Phase:
    """Returns the phase in which clients choose one of ``heads`` of the strategy state."""
    heads = lambda state: state.strategy_state.heads  # noqa: E731
    return _asking(setup, "choose", _count_right, _take_best, heads)


def temperature(setup: Setup) -> Phase:
    """Returns the phase in which clients fit the temperature of the head in the parameters.

    Raises:
      FieldError: clients have no validation examples.
    """
    if setup.once:
        require_validation(setup.problem, "calibrate", "=True")
    head = lambda state: state.params[setup.extractor.task.head]  # noqa: E731
    return _asking(setup, "calibrate", _losses_when_scaled, _scale_logits, head)


def _asking(
    setup: Setup,
    name: str,
    update: Callable[..., ClientResult],
    function: Callable[..., tuple[Params, PyTree]],
    receives: Callable[[ServerState], PyTree],
) -> Phase:
    """Returns a phase in which all clients look at their validation examples.

    ``update`` takes an ``Extractor`` first, ``function`` the name of the last layer.
    """
    problem = setup.problem
    asked = setup._replace(problem=problem._replace(clients=problem.validation or problem.clients))
    client = Client(partial(update, setup.extractor), receives=receives, one_model=True)
    server = assign(partial(function, setup.extractor.task.head), init=setup.continued)
    return asked.phase(name, setup.once, client, server, features.passes(), on_validation=True)


def _count_right(extractor: Extractor, state, batch, own) -> ClientResult:
    """Sends ``i32[L]``, the number of the client's examples that each head gets right."""
    heads: Heads = state.strategy_state.heads

    def add(counts, seen, labels):
        logits = jnp.einsum("nd,ldc->nlc", seen, heads.kernel, precision="highest")
        logits += heads.bias[None]
        right = jnp.argmax(logits, axis=-1) == jnp.argmax(labels, axis=-1)[:, None]
        # A head that could not be solved for predicts nothing.
        right &= jnp.all(jnp.isfinite(logits), axis=-1) & (labels.sum(-1) > 0)[:, None]
        return counts + right.sum(0, dtype=jnp.int32)

    zeros = jnp.zeros(heads.bias.shape[0], jnp.int32)
    return features.result(batch, features.sum_over(extractor, state, batch, add, zeros))


def _take_best(head: str, counts: Array, state: ServerState, of_round: Keys):
    best = state.strategy_state.heads.at(jnp.argmax(counts))
    return state.params | {head: best}, state.strategy_state


def _losses_when_scaled(extractor: Extractor, state, batch, own) -> ClientResult:
    """Sends ``f32[T]``, the sum of the client's losses at each temperature."""
    head = state.params[extractor.task.head]

    def add(losses, seen, labels):
        logits = seen @ head["kernel"] + head["bias"][None]
        scaled = logits[:, None] * jnp.asarray(TEMPERATURES)[None, :, None]
        each = -jnp.sum(jax.nn.log_softmax(scaled) * labels[:, None], axis=-1)
        return losses + each.sum(0)

    zeros = jnp.zeros(len(TEMPERATURES))
    return features.result(batch, features.sum_over(extractor, state, batch, add, zeros))


def _scale_logits(head: str, losses: Array, state: ServerState, of_round: Keys):
    # Without any answer the head stays.
    best = jnp.where(losses.sum() > 0, jnp.asarray(TEMPERATURES)[jnp.argmin(losses)], 1.0)
    scaled = trees.scale_down(state.params[head], 1 / best)
    return state.params | {head: scaled}, state.strategy_state
