"""What an algorithm is given, and what it returns: a ``Problem`` and a tuple of ``Phase``s.

ZOWarmUp is two phases, High Res Only its first alone; the pivot is where phase one ends. Phases are
handed over on the host: they differ in cohort, batch shape and optimizer state (which starts
afresh).
"""

from typing import NamedTuple

import numpy as np

from zo_fl.data import sampling
from zo_fl.errors import ConfigError
from zo_fl.round import Engine
from zo_fl.task import Task
from zo_fl.types import HIGH, ClientStrategy, FederatedAlgorithm


class Problem(NamedTuple):
    """What every algorithm is given.

    Attributes:
      task: model, preprocessing and loss.
      client_tiers: ``i32[K]``, HIGH or LOW.
      client_sizes: ``i32[K]``.
      engine: how clients are laid out on the hardware.
    """

    task: Task
    client_tiers: np.ndarray
    client_sizes: np.ndarray
    engine: Engine


class Phase(NamedTuple):
    """A stretch of rounds of one algorithm.

    Attributes:
      name: shown in metrics and plots.
      num_rounds: how many; 0 skips the phase.
      algorithm: what a round does.
      strategy: the algorithm's strategy; ``cost`` reads its messages' shapes.
      cohort_size: clients a round.
      examples_per_round: mean number of training examples that a round's cohort holds.
      passes: forward passes over each of these examples in a round.
    """

    name: str
    num_rounds: int
    algorithm: FederatedAlgorithm
    strategy: ClientStrategy
    cohort_size: int
    examples_per_round: float
    passes: int


def make_cohorts(problem: Problem, block: str, tiers: str, cohort_size: int, participation: str):
    """Returns ``(sample_cohort, cohort size, mean examples a round)`` for a phase.

    Args:
      problem: who there is.
      block: config block, for error messages: ``"warmup"``.
      tiers: ``"high"`` or ``"all"``: who may take part.
      cohort_size: 0 = all who may.
      participation: ``"uniform"`` or ``"stratified"`` by tier.

    Raises:
      ConfigError: unknown tiers or participation, or a cohort larger than those who may take part.
    """
    if tiers not in ("high", "all"):
        raise ConfigError(
            f"unknown tiers {tiers!r}; allowed: high, all; change config.{block}.tiers"
        )
    allowed = (problem.client_tiers == HIGH) if tiers == "high" else problem.client_tiers >= 0
    eligible = np.flatnonzero(allowed).astype(np.int32)
    sample_cohort = sampling.make_sampler(
        eligible,
        cohort_size,
        problem.client_tiers,
        participation,
        pad_to_multiple=problem.engine.multiple,
        field=f"config.{block}.cohort_size",
    )
    size = cohort_size or len(eligible)
    return sample_cohort, size, size * float(problem.client_sizes[eligible].mean())
