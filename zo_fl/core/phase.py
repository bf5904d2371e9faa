"""What an algorithm is given, and what it returns: a ``Problem`` and a tuple of ``Phase``s.

ZOWarmUp is two phases, High Res Only its first alone; the pivot is where phase one ends. Phases are
handed over on the host: they differ in cohort, batch shape and optimizer state (which starts
afresh).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import optax

from zo_fl.core import cohorts
from zo_fl.core.engine import Engine
from zo_fl.core.errors import ConfigError
from zo_fl.core.round import make_algorithm
from zo_fl.core.task import Task
from zo_fl.core.types import (
    HIGH,
    LOW,
    Aggregation,
    Array,
    ClientStrategy,
    Cohort,
    FederatedAlgorithm,
    FederatedData,
    Group,
    ModelState,
    Params,
    ServerState,
)

TIERS = ("high", "low", "all")


class Problem(NamedTuple):
    """What every algorithm is given.

    Attributes:
      task: model, preprocessing and loss.
      narrow_task: ``width -> Task`` of the same model with that share of its channels.
      clients: the federation, NumPy arrays.
      engine: how clients are laid out on the hardware.
    """

    task: Task
    narrow_task: Callable[[float], Task]
    clients: FederatedData
    engine: Engine


def as_trained(state: ServerState, data: FederatedData | None) -> tuple[Params, ModelState]:
    """Returns the model that is evaluated: the state's own."""
    del data
    return state.params, state.model_state


class Phase(NamedTuple):
    """A stretch of rounds of one algorithm.

    Attributes:
      name: shown in metrics and plots.
      num_rounds: how many; 0 skips the phase.
      groups: who does what; ``cost`` reads the shapes of their messages.
      aggregation: what becomes of the mean.
      server_optimizer: descends along it.
      algorithm: the three as a federated algorithm: what a round does.
      evaluated: ``(state, data) -> (params, model_state)``: the model that the phase has arrived
        at: it is evaluated, and the next phase starts from it.
      needs_all_data: whether ``evaluated`` looks at the data. If not, it may get None for them.
    """

    name: str
    num_rounds: int
    groups: tuple[Group, ...]
    aggregation: Aggregation
    server_optimizer: optax.GradientTransformation
    algorithm: FederatedAlgorithm
    evaluated: Callable[..., tuple[Params, ModelState]] = as_trained
    needs_all_data: bool = False

    @property
    def cohort_size(self) -> int:
        """Clients a round, over all groups."""
        return sum(group.cohort_size for group in self.groups)

    @property
    def forward_passes(self) -> float:
        """Single-example forward passes a round, over all groups."""
        return sum(group.forward_passes for group in self.groups)


def make_phase(
    problem: Problem,
    name: str,
    num_rounds: int,
    groups: Sequence[Group],
    server_optimizer: optax.GradientTransformation,
    aggregation: Aggregation = Aggregation(),  # noqa: B008  # immutable
    evaluated: Callable[..., tuple[Params, ModelState]] = as_trained,
    needs_all_data: bool = False,
) -> Phase:
    """Returns a phase; the arguments are its attributes.

    Raises:
      ConfigError: a negative number of rounds.
    """
    if num_rounds < 0:
        raise ConfigError(
            f"num_rounds of phase {name} is {num_rounds}; it must be >= 0; "
            "change num_rounds in its config block"
        )
    algorithm = make_algorithm(groups, aggregation, server_optimizer, problem.engine)
    return Phase(
        name,
        num_rounds,
        tuple(groups),
        aggregation,
        server_optimizer,
        algorithm,
        evaluated,
        needs_all_data,
    )


def eligible_clients(problem: Problem, block: str, tiers: str) -> np.ndarray:
    """Returns ``i32[E]``, the ids of the clients of some tiers: ``high``, ``low`` or ``all``.

    Raises:
      ConfigError: unknown tiers; ``block`` is the config block that the message names.
    """
    if tiers not in TIERS:
        raise ConfigError(
            f"unknown tiers {tiers!r}; allowed: {', '.join(TIERS)}; change config.{block}.tiers"
        )
    client_tiers = np.asarray(problem.clients.client_tiers)
    wanted = {"high": (HIGH,), "low": (LOW,), "all": (LOW, HIGH)}[tiers]
    return np.flatnonzero(np.isin(client_tiers, wanted)).astype(np.int32)


def make_group(
    problem: Problem,
    strategy: ClientStrategy,
    forward_passes: Callable[[float, float], float],
    *,
    block: str,
    tiers: str,
    cohort_size: int,
    participation: str,
) -> Group:
    """Returns a group of clients of some tiers.

    Args:
      problem: who there is.
      strategy: what they do.
      forward_passes: ``(clients, mean examples of one) -> passes a round``.
      block: config block of the fields, for error messages: ``"warmup"``.
      tiers: ``"high"``, ``"low"`` or ``"all"``: who may take part.
      cohort_size: 0 = all who may.
      participation: ``"uniform"`` or ``"stratified"`` by tier.

    Raises:
      ConfigError: unknown tiers or participation, or a cohort larger than those who may take part.
    """
    eligible = eligible_clients(problem, block, tiers)
    sample_cohort = cohorts.make_sampler(
        eligible,
        cohort_size,
        np.asarray(problem.clients.client_tiers),
        participation,
        field=f"config.{block}.cohort_size",
    )
    return group_of(
        problem, strategy, forward_passes, eligible, cohort_size or len(eligible), sample_cohort
    )


def group_of(
    problem: Problem,
    strategy: ClientStrategy,
    forward_passes: Callable[[float, float], float],
    eligible: np.ndarray,
    cohort_size: int,
    sample_cohort: Callable[[Array], Cohort],
) -> Group:
    """Returns the group that ``sample_cohort`` draws from the clients ``eligible`` ``i32[E]``."""
    examples = float(np.asarray(problem.clients.client_sizes)[eligible].mean())
    return Group(strategy, sample_cohort, cohort_size, forward_passes(cohort_size, examples))
