"""The privacy of a run: epsilon and delta of one example, by ``dp-accounting``."""

from collections.abc import Sequence
from typing import Any

from zo_fl.engine.algorithm import Phase
from zo_fl.engine.fields import ConfigError
from zo_fl.host.schedule import ScheduledPhase
from zo_fl.wrap.privacy import Release

DELTA = 1e-5


def require(phases: Sequence[Phase]) -> None:
    """Raises a ConfigError if some phase needs ``dp-accounting`` and it is not installed."""
    if any(_releases(phase) for phase in phases):
        _library()


def account(phases: Sequence[ScheduledPhase], done: int) -> dict[str, Any] | None:
    """Returns epsilon after ``done`` rounds, by phase; None if no phase promises privacy."""
    begun = [phase for phase in phases if phase.rounds_by(done)]
    found = {}
    for phase in begun:
        for release in _releases(phase.phase):
            rounds = 1 if release.once else phase.rounds_by(done)
            found[phase.phase.name] = epsilon(release.noise, release.times * rounds)
    if not found:
        return None
    names = [phase.phase.name for phase in begun]
    not_private = [name for name in names if name not in found]
    return {"delta": DELTA, "epsilon": found, "not_private": not_private}


def epsilon(noise: float, times: int) -> float:
    """Returns epsilon at ``DELTA`` of Gaussian releases, without amplification by sampling.

    Args:
      noise: standard deviation, as a multiple of the most that an example moves a release.
      times: releases that the example is in.

    Raises:
      ConfigError: ``dp-accounting`` is not installed.
    """
    library, accountant = _library()
    event = library.SelfComposedDpEvent(library.GaussianDpEvent(noise), times)
    return float(accountant().compose(event).get_epsilon(DELTA))


def _releases(phase: Phase) -> list[Release]:
    """Returns the releases of a phase's groups, none if some group promises nothing."""
    found = [group.release for group in phase.groups]
    return [] if None in found else found


def _library() -> tuple[Any, Any]:
    """Returns ``dp_accounting`` and the accountant that is exact for Gaussian noise."""
    try:
        import dp_accounting
        from dp_accounting import pld
    except ImportError:
        raise ConfigError(
            "noise for privacy is accounted for by dp-accounting, which is not installed: "
            "pip install 'zo_fl[privacy]', or set noise to 0"
        ) from None
    return dp_accounting, pld.PLDAccountant
