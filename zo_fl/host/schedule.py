"""Which phase a round belongs to, and what the run has cost by then."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from zo_fl.core.phase import Phase
from zo_fl.core.types import FederatedData
from zo_fl.host.traffic import Traffic, cumulative, low_share, phase_traffic


class Stretch(NamedTuple):
    """A phase, the rounds it covers (``start < round <= end``) and what a round of it costs.

    Attributes:
      phase: what is done.
      start: rounds of the run before it.
      end: rounds of the run after it.
      traffic: a round.
      low_passes: a round, of one low-resource client: the mean over all there are. Single-example
        passes, a backward one counted as two forward ones.
    """

    phase: Phase
    start: int
    end: int
    traffic: Traffic
    low_passes: float

    def rounds_by(self, done: int) -> int:
        """Returns how many of the phase's rounds are among the run's first ``done``."""
        return min(max(done - self.start, 0), self.end - self.start)


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

    def stretch_of(self, round_idx: int) -> Stretch:
        """Returns the stretch that a round (from 1) belongs to."""
        return next(s for s in self.stretches if s.start < round_idx <= s.end)

    def traffic(self, done: int) -> tuple[int, int]:
        """Returns cumulative uplink and downlink in bytes after ``done`` rounds."""
        parts = [cumulative(s.traffic, s.rounds_by(done)) for s in self.stretches]
        return sum(up for up, _ in parts), sum(down for _, down in parts)

    def forward_passes(self, done: int) -> int:
        """Returns single-example forward passes after ``done`` rounds."""
        return round(sum(s.phase.forward_passes * s.rounds_by(done) for s in self.stretches))

    def backward_passes(self, done: int) -> int:
        """Returns single-example backward passes after ``done`` rounds."""
        return round(sum(s.phase.backward_passes * s.rounds_by(done) for s in self.stretches))

    def of_low_client(self, done: int) -> tuple[int, int]:
        """Returns what the mean low-resource client has spent after ``done`` rounds.

        Uplink in bytes, and single-example passes, a backward one counted as two.
        """
        sent = sum(s.traffic.low_uplink * s.rounds_by(done) for s in self.stretches)
        passes = sum(s.low_passes * s.rounds_by(done) for s in self.stretches)
        return round(sent), round(passes)


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
    stretches, start = [], 0
    for phase in phases:
        if phase.num_rounds:
            data = data_of(phase)
            traffic = phase_traffic(phase, params, model_state, data)
            passes = sum(
                float(low_share(group, data).sum()) * group.pass_equivalents / group.cohort_size
                for group in phase.groups
            )
            stretches.append(Stretch(phase, start, start + phase.num_rounds, traffic, passes))
            start += phase.num_rounds
    return Schedule(tuple(stretches))


def chunks(done: int, end: int, options: Mapping[str, int]) -> list[tuple[int, int]]:
    """Returns the ``(start, stop)`` of the chunks of rounds from ``done`` to ``end``.

    Each is a full chunk, or ends sooner to evaluate or save.
    """
    cadences = (options["eval_every"], options["checkpoint_every"])
    cuts = []
    while done < end:
        full = done + options["rounds_per_jit"]
        stop = min(full, end, *((done // n + 1) * n for n in cadences))
        cuts.append((done, stop))
        done = stop
    return cuts
