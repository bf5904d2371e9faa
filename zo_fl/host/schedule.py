"""Which phase a round belongs to, and what the run has cost by then."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from zo_fl.core.phase import Phase
from zo_fl.host.traffic import Traffic, cumulative, phase_traffic


class Stretch(NamedTuple):
    """A phase, the rounds it covers (``start < round <= end``) and its traffic."""

    phase: Phase
    start: int
    end: int
    traffic: Traffic

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


def make_schedule(phases: Sequence[Phase], params, model_state, data) -> Schedule:
    """Returns the schedule of some phases; those without rounds are left out.

    Args:
      phases: in order.
      params: arrays or shapes, as are the others; see ``traffic.phase_traffic``.
      model_state: likewise.
      data: the federation.
    """
    stretches, start = [], 0
    for phase in phases:
        if phase.num_rounds:
            traffic = phase_traffic(phase, params, model_state, data)
            stretches.append(Stretch(phase, start, start + phase.num_rounds, traffic))
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
