"""The schedule of a run: its phases, their rounds and costs, and how far the run is."""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from zo_fl.engine.algorithm import Phase
from zo_fl.engine.types import FederatedData, ModelState, Params
from zo_fl.host.costs import Cost, phase_cost, question_cost


class Position(NamedTuple):
    """How far a run is; saved beside each state.

    Attributes:
      done: rounds.
      ended: ``(place, rounds done then)`` of phases that ended early.
      best: the most validation examples that were right at a question of the present phase's
        ``Stop``; -1 before the first one.
      waited: questions since then.
    """

    done: int = 0
    ended: tuple[tuple[int, int], ...] = ()
    best: int = -1
    waited: int = 0


def position_of(done: int, saved: Mapping[str, Any]) -> Position:
    """Returns the position that a checkpoint of ``done`` rounds has in its JSON dict."""
    ended = tuple((place, after) for place, after in saved.get("ended", []))
    return Position(done, ended, saved.get("best", -1), saved.get("waited", 0))


class ScheduledPhase(NamedTuple):
    """A phase, its rounds (``start < round <= end``) and their costs.

    Attributes:
      place: among the run's phases that have rounds.
      phase: the description.
      start: rounds of the run that are done when it begins.
      end: rounds of the run that are done when it ends.
      bill: ``() -> (cost of a round, cost of a question of its Stop or None)``. The first call
        takes as long as tracing a client's work.
    """

    place: int
    phase: Phase
    start: int
    end: int
    bill: Callable[[], tuple[Cost, Cost | None]]

    def rounds_by(self, done: int) -> int:
        """Returns how many of the phase's rounds are among the run's first ``done``."""
        return min(max(done - self.start, 0), self.end - self.start)

    def asks(self, done: int) -> bool:
        """Returns whether a question follows the run's round ``done``."""
        stop = self.phase.stop
        if stop is None or not self.start < done <= self.end:
            return False
        return done == self.end or (done - self.start) % stop.every == 0

    def costs_by(self, done: int) -> list[tuple[Cost, int]]:
        """Returns the costs of the run's first ``done`` rounds, and how many times each arose.

        A question is billed with the round before it.
        """
        rounds, stop = self.rounds_by(done), self.phase.stop
        if not rounds:
            return []
        of_round, question = self.bill()
        if question is None or stop is None:
            return [(of_round, rounds)]
        asked_at_end = done >= self.end and (self.end - self.start) % stop.every > 0
        return [(of_round, rounds), (question, rounds // stop.every + asked_at_end)]


class Schedule(NamedTuple):
    """The phases of a run, one after the other."""

    phases: tuple[ScheduledPhase, ...]

    @property
    def end(self) -> int:
        """Rounds of the whole run."""
        return self.phases[-1].end

    @property
    def pivot(self) -> int | None:
        """Rounds done when the first phase ends, or None if it is the only one."""
        return self.phases[0].end if len(self.phases) > 1 else None

    def is_kept(self, done: int) -> bool:
        """Returns whether the state after ``done`` rounds is kept for ever.

        The one at the pivot is, and every one that replayed rounds start from.
        """
        pairs = itertools.pairwise(self.phases)
        return done == self.pivot or any(a.end == done and b.phase.replays for a, b in pairs)

    def at(self, round_idx: int) -> ScheduledPhase:
        """Returns the phase that a round (from 1) belongs to."""
        return next(p for p in self.phases if p.start < round_idx <= p.end)

    def ended(self, ended: Iterable[tuple[int, int]]) -> "Schedule":
        """Returns the schedule of the same run with some phases shortened; see ``Position``."""
        schedule = self
        for place, done in ended:
            schedule = _shortened(schedule, place, done)
        return schedule

    def cost_by(self, done: int) -> Cost:
        """Returns the cost of the run's first ``done`` rounds."""
        costs = (item for phase in self.phases for item in phase.costs_by(done))
        billed = [(c.at_start, *(times * part for part in c[1:])) for c, times in costs if times]
        return Cost._make(map(sum, zip(Cost(), *billed, strict=True)))


def _shortened(schedule: Schedule, place: int, done: int) -> Schedule:
    saved, stop = schedule.phases[place].end - done, schedule.phases[place].phase.stop
    last = schedule.phases[-1].place
    keeps_end = last if stop is not None and stop.hands_over and last > place else None

    def moved(phase: ScheduledPhase) -> ScheduledPhase:
        first = phase.start - (saved if phase.place > place else 0)
        return phase._replace(start=first, end=phase.end - saved * (phase.place != keeps_end))

    return Schedule((*schedule.phases[:place], *map(moved, schedule.phases[place:])))


def make_schedule(
    phases: Sequence[Phase],
    params: Params,
    model_state: ModelState,
    clients: FederatedData,
    validation: FederatedData,
) -> Schedule:
    """Returns the schedule of some phases; those without rounds are left out.

    The model is of arrays or ``jax.ShapeDtypeStruct``; ``validation`` has the same clients as the
    federation ``clients``, both NumPy arrays, with their validation examples.
    """
    scheduled, done = [], 0
    for phase in phases:
        if not phase.num_rounds:
            continue
        data, end = validation if phase.on_validation else clients, done + phase.num_rounds
        bill = functools.cache(
            functools.partial(_bill, phase, params, model_state, data, validation)
        )
        scheduled.append(ScheduledPhase(len(scheduled), phase, done, end, bill))
        done = end
    return Schedule(tuple(scheduled))


def _bill(
    phase: Phase,
    params: Params,
    model_state: ModelState,
    data: FederatedData,
    validation: FederatedData,
) -> tuple[Cost, Cost | None]:
    of_round, stop = phase_cost(phase, params, model_state, data), phase.stop
    if stop is None:
        return of_round, None
    return of_round, question_cost(phase, stop, params, model_state, validation)


def chunks(phase: ScheduledPhase, done: int, options: Mapping[str, int]) -> list[tuple[int, int]]:
    """Returns the ``(start, stop)`` of the chunks of a phase's rounds from ``done`` on.

    A chunk is full, or ends sooner to evaluate, to save or to ask; ``options`` is ``config.run``.
    The first is one round, which soon shows that they go on, and how fast.
    """
    cadences = [(0, options["eval_every"]), (0, options["checkpoint_every"])]
    if phase.phase.stop is not None:
        cadences.append((phase.start, phase.phase.stop.every))
    cuts = [(done, done + 1)]
    done += 1
    while done < phase.end:
        due = (begin + ((done - begin) // n + 1) * n for begin, n in cadences)
        stop = min(done + options["rounds_per_jit"], phase.end, *due)
        cuts.append((done, stop))
        done = stop
    return cuts
