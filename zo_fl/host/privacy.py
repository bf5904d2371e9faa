"""The privacy of a run: what it reveals of one example, as epsilon at a delta.

A release with Gaussian noise of sigma times the most that an example moves it is mu-GDP with mu =
1 / sigma. Releases compose to the root of the sum of their mu^2, over rounds and over phases, and

    delta = Phi(mu / 2 - epsilon / mu) - e^epsilon Phi(-mu / 2 - epsilon / mu)

is exact, without amplification by sampling.

Sources: Balle and Wang 2018 (arXiv 1805.06530), Theorem 8; Dong, Roth, Su 2022 (arXiv 1905.02383).
"""

import math
from collections.abc import Sequence
from typing import Any

from zo_fl.host.schedule import ScheduledPhase

DELTA = 1e-5
# What the numbers are about, for ``summary.json``.
ADJACENCY = (
    "an example is there, or counts as nothing; each client's number of examples is public. Where "
    "one example takes the place of another, everything is twice as far apart"
)
SECURE_AGGREGATION = "the server sees the sum of a cohort's messages alone"
NOT_COVERED = [
    "the data set's channel means and deviations, unless they were given: those of all images",
    "losses and accuracies that a simulation writes down",
]


def account(phases: Sequence[ScheduledPhase], done: int) -> dict[str, Any] | None:
    """Returns epsilon after ``done`` rounds, by phase and in all; None if no phase promises any.

    Phases of one name are one entry. An example is in the messages of one group of a phase alone:
    the group that reveals most counts.
    """
    squares: dict[str, float] = {}
    open_, shared = {}, False
    for phase in phases:
        releases = [group.release for group in phase.phase.groups]
        if not phase.rounds_by(done):
            continue
        if None in releases:
            open_[phase.phase.name] = True
            continue
        rounds = [1 if release.once else phase.rounds_by(done) for release in releases]
        most = max(r.times * n / r.noise**2 for r, n in zip(releases, rounds, strict=True))
        squares[phase.phase.name] = squares.get(phase.phase.name, 0.0) + most
        shared |= any(release.shared for release in releases)
    if not squares:
        return None
    return {
        "delta": DELTA,
        "epsilon": {name: epsilon(math.sqrt(square)) for name, square in squares.items()},
        "epsilon_in_all": epsilon(math.sqrt(sum(squares.values()))),
        "adjacency": ADJACENCY,
        "assumes": [SECURE_AGGREGATION] if shared else [],
        "not_covered": NOT_COVERED,
        "not_private": list(open_),
    }


def epsilon(mu: float) -> float:
    """Returns epsilon at ``DELTA`` of what is mu-GDP, mu > 0."""
    from scipy import optimize  # here, as in delta: slow to import, and most runs have no noise

    if delta(0.0, mu) <= DELTA:
        return 0.0
    high = 1.0
    while delta(high, mu) > DELTA:
        high *= 2
    return optimize.bisect(lambda e: delta(e, mu) - DELTA, 0.0, high, xtol=1e-12)  # pyright: ignore


def delta(epsilon: float, mu: float) -> float:
    """Returns delta at epsilon of what is mu-GDP, mu > 0."""
    from scipy import special

    likely = special.ndtr(mu / 2 - epsilon / mu)
    # e^epsilon may overflow where its factor underflows; their product, at most 1, by rounding.
    unlikely = min(0.0, epsilon + special.log_ndtr(-mu / 2 - epsilon / mu))
    return float(likely - math.exp(unlikely))
