"""Which phase a round belongs to, and what the run has cost by then."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from zo_fl.engine.phase import Check, Phase
from zo_fl.engine.types import FederatedData
from zo_fl.host.traffic import Traffic, cumulative, low_share, phase_traffic


class Cost(NamedTuple):
    """What is done some number of times, and what it costs each time.

    Attributes:
      phase: of which it is a round.
      traffic: a time.
      low_passes: a time, of one low-resource client: the mean over all there are. Single-example
        passes, a backward one counted as two forward ones.
    """

    phase: Phase
    traffic: Traffic
    low_passes: float


class Stretch(NamedTuple):
    """A phase, the rounds it covers (``start < round <= end``) and what they cost.

    Attributes:
      place: of its phase in the run.
      phase: what is done.
      start: rounds of the run before it.
      end: rounds of the run after it.
      round: what a round costs.
      check: what a check costs, if there are checks.
    """

    place: int
    phase: Phase
    start: int
    end: int
    round: Cost
    check: Cost | None = None

    def rounds_by(self, done: int) -> int:
        """Returns how many of the phase's rounds are among the run's first ``done``."""
        return min(max(done - self.start, 0), self.end - self.start)

    def is_checked(self, done: int) -> bool:
        """Returns whether a check follows the run's round ``done``."""
        check: Check | None = self.phase.check
        if check is None or not self.start < done <= self.end:
            return False
        return done == self.end or (done - self.start) % check.every == 0

    def costs_by(self, done: int) -> list[tuple[Cost, int]]:
        """Returns what was done how many times in the run's first ``done`` rounds."""
        rounds = self.rounds_by(done)
        if self.check is None or self.phase.check is None:
            return [(self.round, rounds)]
        checks = rounds // self.phase.check.every
        if done >= self.end and (self.end - self.start) % self.phase.check.every:
            checks += 1
        return [(self.round, rounds), (self.check, checks)]


class Schedule(NamedTuple):
    """The phases of a run, one after the other."""

    stretches: tuple[Stretch, ...]

    @property
    def end(self) -> int:
        """Rounds of the whole run."""
        return self.stretches[-1].end

    @property
    def pivot(self) -> int | None:
        """Rounds done at the pivot, or None if there is one phase."""
        return self.stretches[0].end if len(self.stretches) > 1 else None

    def is_kept(self, done: int) -> bool:
        """Returns whether the state after ``done`` rounds is kept for ever.

        The pivot's is, and what rounds that can be replayed start from.
        """
        ends = {s.end: later.phase for s, later in itertools.pairwise(self.stretches)}
        return done == self.pivot or (done in ends and ends[done].replays)

    def stretch_of(self, round_idx: int) -> Stretch:
        """Returns the stretch that a round (from 1) belongs to."""
        return next(s for s in self.stretches if s.start < round_idx <= s.end)

    def replayed(self, after: int, until: int) -> list[int]:
        """Returns the rounds ``after < round <= until`` of phases that can be replayed."""
        return [
            round_idx
            for s in self.stretches
            if s.phase.replays
            for round_idx in range(max(s.start, after) + 1, min(s.end, until) + 1)
        ]

    def ended(self, place: int, done: int) -> "Schedule":
        """Returns the schedule of the same run whose phase ``place`` ends after round ``done``."""
        saved, check = self.stretches[place].end - done, self.stretches[place].phase.check
        last = self.stretches[-1].place
        keeps_end = last if check is not None and check.hands_over and last > place else None

        def moved(stretch: Stretch) -> Stretch:
            start = stretch.start - (saved if stretch.place > place else 0)
            end = stretch.end - (saved if stretch.place != keeps_end else 0)
            return stretch._replace(start=start, end=end)

        kept = self.stretches[:place]
        return Schedule((*kept, *map(moved, self.stretches[place:])))

    def traffic(self, done: int) -> tuple[int, int]:
        """Returns cumulative uplink and downlink in bytes after ``done`` rounds."""
        parts = [cumulative(cost.traffic, times) for cost, times in self._costs(done)]
        return sum(up for up, _ in parts), sum(down for _, down in parts)

    def forward_passes(self, done: int) -> int:
        """Returns single-example forward passes after ``done`` rounds."""
        return round(sum(cost.phase.forward_passes * n for cost, n in self._costs(done)))

    def backward_passes(self, done: int) -> int:
        """Returns single-example backward passes after ``done`` rounds."""
        return round(sum(cost.phase.backward_passes * n for cost, n in self._costs(done)))

    def of_low_client(self, done: int) -> tuple[int, int]:
        """Returns what the mean low-resource client has spent after ``done`` rounds.

        Uplink in bytes, and single-example passes, a backward one counted as two.
        """
        sent = sum(cost.traffic.low_uplink * n for cost, n in self._costs(done))
        passes = sum(cost.low_passes * n for cost, n in self._costs(done))
        return round(sent), round(passes)

    def _costs(self, done: int) -> list[tuple[Cost, int]]:
        return [item for stretch in self.stretches for item in stretch.costs_by(done)]


def make_schedule(
    phases: Sequence[Phase], params, model_state, data_of: Callable[[Phase], FederatedData]
) -> Schedule:
    """Returns the schedule of some phases; those without rounds are left out.

    Args:
      phases: in order.
      params: arrays or shapes, as are the others; see ``traffic.phase_traffic``.
      model_state: likewise.
      data_of: what the clients of a phase look at.
    """

    def cost_of(phase: Phase) -> Cost:
        data = data_of(phase)
        passes = sum(
            float(low_share(group, data).sum()) * group.pass_equivalents / group.cohort_size
            for group in phase.groups
        )
        return Cost(phase, phase_traffic(phase, params, model_state, data), passes)

    stretches: list[Stretch] = []
    start = 0
    for phase in phases:
        if phase.num_rounds:
            check = None if phase.check is None else cost_of(phase.check.phase)
            end = start + phase.num_rounds
            stretches.append(Stretch(len(stretches), phase, start, end, cost_of(phase), check))
            start = end
    return Schedule(tuple(stretches))


def chunks(stretch: Stretch, done: int, options: Mapping[str, int]) -> list[tuple[int, int]]:
    """Returns the ``(start, stop)`` of the chunks of a phase's rounds from ``done`` on.

    Each is a full chunk, or ends sooner to evaluate, to save or to check.
    """
    cadences = [(0, options["eval_every"]), (0, options["checkpoint_every"])]
    if stretch.phase.check is not None:
        cadences.append((stretch.start, stretch.phase.check.every))
    cuts = []
    while done < stretch.end:
        full = done + options["rounds_per_jit"]
        due = (begin + ((done - begin) // n + 1) * n for begin, n in cadences)
        stop = min(full, stretch.end, *due)
        cuts.append((done, stop))
        done = stop
    return cuts
