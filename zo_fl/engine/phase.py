"""What an algorithm is given, and what it returns: a ``Problem`` and a tuple of ``Phase``s.

A phase only describes; ``round.make_algorithm`` runs it on an engine. ZOWarmUp is two phases, High
Res Only its first alone; the pivot is where phase one ends. Phases are handed over on the host:
they differ in cohort, batch shape and optimizer state (which starts afresh).
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
import optax

from zo_fl.engine import cohorts
from zo_fl.engine.fields import Block, Field
from zo_fl.engine.robust import Robust
from zo_fl.engine.strategy import Aggregation, ClientStrategy, Group, SampleCohort, as_sent
from zo_fl.engine.task import Task
from zo_fl.engine.types import (
    HIGH,
    LOW,
    Array,
    Examples,
    FederatedData,
    ModelState,
    Params,
    PyTree,
    ServerState,
)

TIERS = {"high": (HIGH,), "low": (LOW,), "all": (LOW, HIGH)}


class Problem(NamedTuple):
    """What every algorithm is given.

    Attributes:
      task: model, preprocessing and loss.
      narrow_task: ``width -> Task`` of the same model with that share of its channels.
      clients: the federation, NumPy arrays.
      validation: the same clients with their validation examples, None if there are none.
    """

    task: Task
    narrow_task: Callable[[float], Task]
    clients: FederatedData
    validation: FederatedData | None = None


class Keeps(Protocol):
    """What clients compute once and hold on to."""

    def __call__(self, params: Params, model_state: ModelState, examples: Examples, /) -> Examples:
        """Returns what they look at instead of their examples: leaves ``[N, ...]`` in that order.

        It must depend on nothing that the phase changes.
        """
        ...


class Keeping(NamedTuple):
    """What can be looked at instead of examples.

    ``client_update`` must do the same with the examples themselves, which it gets where data are
    streamed.

    Attributes:
      compute: makes it of examples.
      on_client: whether clients hold on to it, a matter of their memory and passes. Else only their
        simulation may, for several runs.
    """

    compute: Keeps
    on_client: bool


class Evaluated(Protocol):
    """The model that a phase has arrived at."""

    def __call__(
        self, state: ServerState, data: FederatedData | None, /
    ) -> tuple[Params, ModelState]:
        """Returns ``(params, model_state)``; ``data`` may be None unless the phase needs them."""
        ...


def as_trained(state: ServerState, data: FederatedData | None) -> tuple[Params, ModelState]:
    """Returns the model that is evaluated: the state's own."""
    del data
    return state.params, state.model_state


class IsOver(Protocol):
    """Whether a phase has done what it can."""

    def __call__(self, strategy_state: PyTree, /) -> Array:
        """Returns ``bool[]``."""
        ...


class Check(NamedTuple):
    """What clients are asked every few rounds of a phase, and whether it ends by their answers.

    A check is no round of the run: it draws nothing and leaves the optimizer alone. It is billed
    with the round that it follows.

    Attributes:
      phase: of one round, with the strategy state of the phase that is checked; what it assigns
        stays.
      every: rounds; the phase's last one is followed by one as well.
      is_over: asked after it.
      hands_over: whether the run's last phase takes the rounds that are saved.
    """

    phase: "Phase"
    every: int
    is_over: IsOver
    hands_over: bool = False


class Release(NamedTuple):
    """What clients reveal of one example in a phase, as differential privacy counts it.

    Attributes:
      noise: standard deviation of Gaussian noise, as a multiple of the most that an example moves.
      times: messages of a round that an example is in.
      once: whether it is in those of one round only, not in those of every round.
    """

    noise: float
    times: int
    once: bool


class Phase(NamedTuple):
    """A stretch of rounds of one algorithm: a description, without the devices that it runs on.

    Attributes:
      name: shown in metrics and plots.
      num_rounds: how many, at most; 0 skips the phase.
      groups: who does what; traffic is computed from the shapes of their messages.
      aggregation: what becomes of their updates.
      server_optimizer: descends along the pseudo-gradient; None if the aggregation assigns.
      evaluated: the model that the phase has arrived at: it is evaluated, and the next phase starts
        from it.
      needs_all_data: whether ``evaluated`` looks at the data.
      continues: whether it goes on with the strategy state of the phase before, which has the same
        structure, instead of starting its own.
      prepares: whether it only makes ready what a later phase needs, and is not worth evaluating.
      on_validation: whether clients look at their validation examples instead of those of training.
      keeping: what may be computed when the phase begins, to be looked at instead of examples; the
        same object in phases that follow each other is computed once.
      check: what may end it before its rounds are over.
      robust: how the server reads messages that it cannot trust.
      release: what clients reveal of an example; None promises nothing.
    """

    name: str
    num_rounds: int
    groups: tuple[Group, ...]
    aggregation: Aggregation
    server_optimizer: optax.GradientTransformation | None
    evaluated: Evaluated = as_trained
    needs_all_data: bool = False
    continues: bool = False
    prepares: bool = False
    on_validation: bool = False
    keeping: Keeping | None = None
    check: Check | None = None
    robust: Robust = Robust()
    release: Release | None = None

    @property
    def replays(self) -> bool:
        """Whether a round follows from what clients send in it, keys and the state before."""
        return all(group.strategy.replays for group in self.groups)

    @property
    def sums_suffice(self) -> bool:
        """Whether the server needs only the sum of what clients send: secure aggregation fits.

        Not where each message is rebuilt along directions of the client's own, or judged beside the
        others.
        """
        read_singly = (
            group.strategy.replays and group.strategy.decode is not as_sent for group in self.groups
        )
        return not self.robust.looks_at_all and not any(read_singly)

    @property
    def cohort_size(self) -> int:
        """Clients a round, over all groups."""
        return sum(group.cohort_size for group in self.groups)

    @property
    def forward_passes(self) -> float:
        """Single-example forward passes a round, over all groups."""
        return sum(group.forward_passes for group in self.groups)

    @property
    def backward_passes(self) -> float:
        """Single-example backward passes a round, over all groups."""
        return sum(group.backward_passes for group in self.groups)

    @property
    def pass_equivalents(self) -> float:
        """Passes a round, in forward ones: a backward pass counts two."""
        return sum(group.pass_equivalents for group in self.groups)

    def init(
        self, params: Params, model_state: ModelState, round_idx: int | Array = 0
    ) -> ServerState:
        """Returns the phase's first state, ``round_idx`` rounds after the run's start."""
        optimizer = self.server_optimizer
        return ServerState(
            params,
            model_state,
            () if optimizer is None else optimizer.init(params),
            self.aggregation.init(params),
            jnp.int32(round_idx),
        )


class Participation(NamedTuple):
    """Who takes part in a round: fields that most config blocks have.

    Attributes:
      cohort_size: clients a round; 0 = all who may take part.
      tiers: ``high``, ``low`` or ``all``: who may.
      participation: ``uniform``, or ``stratified`` by tier.
    """

    cohort_size: int = 0
    tiers: str = "all"
    participation: str = "uniform"


PARTICIPATION: Block = {
    "cohort_size": Field(0, "clients a round; 0 = all who may take part", at_least=0),
    "tiers": Field("all", "who may take part", tuple(TIERS)),
    "participation": Field("uniform", "of a cohort; or stratified by tier", cohorts.PARTICIPATION),
}


def eligible_clients(problem: Problem, tiers: str) -> np.ndarray:
    """Returns ``i32[E]``, the ids of the clients of some tiers: ``high``, ``low`` or ``all``."""
    client_tiers = np.asarray(problem.clients.client_tiers)
    return np.flatnonzero(np.isin(client_tiers, TIERS[tiers])).astype(np.int32)


def cohort_size(problem: Problem, who: Participation) -> int:
    """Returns how many clients take part in a round."""
    return who.cohort_size or len(eligible_clients(problem, who.tiers))


def make_group(
    problem: Problem,
    strategy: ClientStrategy,
    forward_passes: Callable[[float, float], float],
    who: Participation,
    trains: bool = False,
) -> Group:
    """Returns a group of clients of some tiers.

    Args:
      problem: who there is.
      strategy: what they do.
      forward_passes: ``(clients, mean examples of one) -> passes a round``.
      who: may take part, and how many do.
      trains: whether a backward pass follows each forward one.

    Raises:
      ConfigError: a cohort larger than those who may take part, or nobody may.
    """
    eligible = eligible_clients(problem, who.tiers)
    sample_cohort = cohorts.make_sampler(
        eligible, who.cohort_size, np.asarray(problem.clients.client_tiers), who.participation
    )
    size = who.cohort_size or len(eligible)
    return group_of(problem, strategy, forward_passes, eligible, size, sample_cohort, trains)


def group_of(
    problem: Problem,
    strategy: ClientStrategy,
    forward_passes: Callable[[float, float], float],
    eligible: np.ndarray,
    cohort_size: int,
    sample_cohort: SampleCohort,
    trains: bool = False,
) -> Group:
    """Returns the group that ``sample_cohort`` draws from the clients ``eligible`` ``i32[E]``."""
    examples = float(np.asarray(problem.clients.client_sizes)[eligible].mean())
    passes = forward_passes(cohort_size, examples)
    return Group(strategy, sample_cohort, cohort_size, passes, eligible, passes if trains else 0.0)
