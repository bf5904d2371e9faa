"""What the phases of a run reveal of one example: epsilon and delta, by ``dp-accounting``."""

from collections.abc import Sequence
from typing import Any

from zo_fl.engine.errors import ConfigError
from zo_fl.engine.phase import Phase
from zo_fl.host.schedule import Stretch

DELTA = 1e-5


def require(phases: Sequence[Phase]) -> None:
    """Checks that epsilon can be computed where it is wanted.

    Raises:
      ConfigError: ``dp-accounting`` is not installed.
    """
    if any(phase.release for phase in phases):
        _library()


def account(stretches: Sequence[Stretch], done: int) -> dict[str, Any] | None:
    """Returns what a run has revealed of an example; None where no phase promises anything.

    Args:
      stretches: of the run.
      done: rounds.
    """
    begun = [stretch for stretch in stretches if stretch.rounds_by(done)]
    found = {}
    for stretch in begun:
        release = stretch.phase.release
        if release is not None:
            rounds = 1 if release.once else stretch.rounds_by(done)
            found[stretch.phase.name] = epsilon(release.noise, release.times * rounds)
    if not found:
        return None
    names = [stretch.phase.name for stretch in begun]
    return {
        "delta": DELTA,
        "epsilon": found,
        "not_private": [name for name in names if name not in found],
    }


def epsilon(noise: float, times: int) -> float:
    """Returns epsilon at ``DELTA`` of so many Gaussian releases, nothing amplified.

    Args:
      noise: standard deviation, as a multiple of the most that an example moves a release.
      times: releases that the example is in.

    Raises:
      ConfigError: as ``require``.
    """
    library, accountant = _library()
    event = library.SelfComposedDpEvent(library.GaussianDpEvent(noise), times)
    return float(accountant().compose(event).get_epsilon(DELTA))


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
