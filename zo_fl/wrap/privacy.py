"""Differential privacy of an example: what it adds to a message is bounded, and hidden by noise.

    scalars   its loss difference lies within [-bound, bound]: a message of S scalars, means over n
              examples, moves by bound sqrt(S) / n at most
    sums      its features have a length of bound at most, see ``heads.ridge``

Gaussian noise of ``noise`` times that hides whether an example was there or counted as nothing (the
number of a client's examples is public). A message that the server reads by itself has all of the
noise.

``host.privacy`` computes (epsilon, delta) of all rounds and phases, and says what they leave out.
Here noise comes from the run's key, so that a run can be repeated; clients of the real world draw
it for themselves.

Sources: Dwork and Roth 2014; DPZero (arXiv 2310.09639) for scalars.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zo_fl.engine.algorithm import Phase
from zo_fl.engine.fields import Block, ConfigError, Field, FieldError
from zo_fl.engine.types import Array

FIELDS: Block = {
    "bound": Field(0.0, "bound on what an example adds to a message", above=0, zero="none"),
    "noise": Field(
        0.0, "Gaussian noise, times the most that an example moves a message", at_least=0
    ),
}


LEAST = 1e-6  # noise below is none: epsilon is more than 5e11


class Privacy(NamedTuple):
    """The values of ``FIELDS``."""

    bound: float
    noise: float


class Release(NamedTuple):
    """A phase's disclosure of one example, as differential privacy counts it.

    Attributes:
      noise: standard deviation of Gaussian noise, as a multiple of the most that an example moves.
      times: messages of a round that an example is in.
      once: whether it is in those of one round only, not in those of every round.
      shared: whether a message has a share of the noise only: all of a cohort must answer, and
        nobody may read single messages (``check_shares``).
    """

    noise: float
    times: int = 1
    once: bool = False
    shared: bool = False


def release(privacy: Privacy, **how: Any) -> Release | None:
    """Returns a phase's disclosure of an example; None where nothing is promised.

    Raises:
      FieldError: noise without a bound, or next to none.
    """
    if not privacy.noise:
        return None
    if privacy.noise < LEAST:
        raise FieldError(
            "noise", f"={privacy.noise:g} hides nothing; allowed: 0, or from {LEAST:g} on"
        )
    if not privacy.bound:
        raise FieldError("bound", "='none' bounds nothing that noise could hide; allowed: above 0")
    return Release(privacy.noise, **how)


def check_shares(phase: Phase, field: str, given: Any) -> None:
    """Checks that no message of a phase has a share of the noise only.

    Raises:
      ConfigError: one has, and the config's ``field`` reads single messages or loses some.
    """
    if any(group.release is not None and group.release.shared for group in phase.groups):
        raise ConfigError(
            f"config.{field}={given!r}: a message of {phase.name} has a share of the noise only, "
            "which hides nothing unless all are added up; allowed with noise: no faults, and the "
            "rule mean"
        )


def noisy_scalars(privacy: Privacy, scalars: Array, weights: Array, key: Array) -> Array:
    """Returns noisy scalars ``f32[S]``, means of clipped differences by weights ``f32[n]``."""
    if not privacy.noise:
        return scalars
    most = privacy.bound * math.sqrt(len(scalars)) * jnp.max(weights)
    return scalars + privacy.noise * most * jax.random.normal(key, scalars.shape)
