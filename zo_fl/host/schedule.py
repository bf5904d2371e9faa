"""The schedule of a run: its phases, their rounds, and their costs.

The communication of a round follows from the shapes of the real messages:

    uplink     cohort x (message + uploaded statistics)
    downlink   receivers x (what the update is rebuilt from + the new statistics)

The cohort receives a first-order round as the new model (HeteroFL's narrow clients: their slice of
it). The whole population receives a zeroth-order round as scalars, because every client must follow
every update; one that was absent catches up later with the same bytes. When such a phase begins,
everyone receives the model once. Directions come from keys and cost nothing. A question of ``Stop``
is billed with the round before it.

Source: ZOWarmUp, A.3 and Table 1, whose communication columns are scrambled as printed.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zo_fl.engine import cohorts, keys, trees
from zo_fl.engine.algorithm import TIERS, Group, Phase, Stop, start
from zo_fl.engine.round import traced_once
from zo_fl.engine.types import LOW, FederatedData, ModelState, Params


class Cost(NamedTuple):
    """The cost of a round, or of a question: to all clients together, where nothing else is said.

    Attributes:
      at_start: bytes of downlink, once, when the phase begins.
      uplink: bytes.
      downlink: bytes.
      low_uplink: bytes of one low-resource client, the mean over all of them.
      forward_passes: of single examples.
      backward_passes: of single examples; one costs about two forward passes.
      low_passes: of one low-resource client, in forward passes.
    """

    at_start: int
    uplink: int
    downlink: int
    low_uplink: float
    forward_passes: float
    backward_passes: float
    low_passes: float

    @property
    def pass_equivalents(self) -> float:
        """Forward passes, a backward one counted as two."""
        return self.forward_passes + 2 * self.backward_passes


class ScheduledPhase(NamedTuple):
    """A phase, the rounds it covers (``start < round <= end``) and what they cost.

    Attributes:
      place: among the run's phases that have rounds.
      phase: what is done.
      start: rounds of the run that are done when it begins.
      end: rounds of the run that are done when it ends.
      round: cost of a round.
      question: cost of a question of its ``Stop``, if it has one.
    """

    place: int
    phase: Phase
    start: int
    end: int
    round: Cost
    question: Cost | None = None

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
        """Returns the costs of the run's first ``done`` rounds, and how many times each arose."""
        rounds, stop = self.rounds_by(done), self.phase.stop
        if self.question is None or stop is None:
            return [(self.round, rounds)]
        asked_at_end = done >= self.end and (self.end - self.start) % stop.every > 0
        return [(self.round, rounds), (self.question, rounds // stop.every + asked_at_end)]


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
        ends = {before.end: after.phase.replays for before, after in pairs}
        return done == self.pivot or ends.get(done, False)

    def at(self, round_idx: int) -> ScheduledPhase:
        """Returns the phase that a round (from 1) belongs to."""
        return next(p for p in self.phases if p.start < round_idx <= p.end)

    def ended(self, ended: Iterable[tuple[int, int]]) -> "Schedule":
        """Returns the schedule of the same run if some phases end early.

        Args:
          ended: ``(place, rounds of the run done then)``, in order.
        """
        schedule = self
        for place, done in ended:
            schedule = _shortened(schedule, place, done)
        return schedule

    def traffic(self, done: int) -> tuple[int, int]:
        """Returns cumulative uplink and downlink in bytes after ``done`` rounds."""
        costs = [(cost, times) for cost, times in self._costs(done) if times]
        uplink = sum(cost.uplink * times for cost, times in costs)
        return uplink, sum(cost.at_start + cost.downlink * times for cost, times in costs)

    def passes(self, done: int) -> tuple[int, int]:
        """Returns single-example forward and backward passes after ``done`` rounds."""
        costs = self._costs(done)
        forward = sum(cost.forward_passes * times for cost, times in costs)
        return round(forward), round(sum(cost.backward_passes * times for cost, times in costs))

    def of_low_client(self, done: int) -> tuple[int, int]:
        """Returns the mean low-resource client's uplink bytes and passes after ``done`` rounds.

        Passes are of single examples; a backward one counts as two.
        """
        costs = self._costs(done)
        sent = sum(cost.low_uplink * times for cost, times in costs)
        return round(sent), round(sum(cost.low_passes * times for cost, times in costs))

    def _costs(self, done: int) -> list[tuple[Cost, int]]:
        return [item for phase in self.phases for item in phase.costs_by(done)]


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

    Args:
      phases: in order.
      params: arrays or ``jax.ShapeDtypeStruct``.
      model_state: arrays or ``jax.ShapeDtypeStruct``.
      clients: the federation, NumPy arrays.
      validation: the same clients with their validation examples.
    """
    scheduled, done = [], 0
    for phase in phases:
        if not phase.num_rounds:
            continue
        data, end = validation if phase.on_validation else clients, done + phase.num_rounds
        cost, question = phase_cost(phase, params, model_state, data), None
        if phase.stop is not None:
            question = question_cost(phase, phase.stop, params, model_state, validation)
        scheduled.append(ScheduledPhase(len(scheduled), phase, done, end, cost, question))
        done = end
    return Schedule(tuple(scheduled))


def chunks(phase: ScheduledPhase, done: int, options: Mapping[str, int]) -> list[tuple[int, int]]:
    """Returns the ``(start, stop)`` of the chunks of a phase's rounds from ``done`` on.

    A chunk is full, or ends sooner to evaluate, to save or to ask.
    """
    cadences = [(0, options["eval_every"]), (0, options["checkpoint_every"])]
    if phase.phase.stop is not None:
        cadences.append((phase.start, phase.phase.stop.every))
    cuts = []
    while done < phase.end:
        due = (begin + ((done - begin) // n + 1) * n for begin, n in cadences)
        stop = min(done + options["rounds_per_jit"], phase.end, *due)
        cuts.append((done, stop))
        done = stop
    return cuts


def phase_cost(phase: Phase, params: Params, model_state: ModelState, data: FederatedData) -> Cost:
    """Returns the cost of a round, from the shapes of what clients send and receive.

    Args:
      phase: any phase.
      params: arrays or ``jax.ShapeDtypeStruct``.
      model_state: arrays or ``jax.ShapeDtypeStruct``.
      data: of its clients, NumPy arrays.
    """
    found = [group_traffic(group, phase, params, model_state, data) for group in phase.groups]
    if phase.replays:
        population = data.client_sizes.shape[0]
        at_start = population * max(each.received for each in found)
        downlink = population * sum(each.broadcast for each in found)
    else:
        at_start, downlink = 0, sum(each.downlink for each in found)
    return Cost(
        at_start=at_start,
        uplink=sum(each.uplink for each in found),
        downlink=downlink,
        low_uplink=sum(each.low_uplink for each in found),
        forward_passes=sum(group.forward_passes for group in phase.groups),
        backward_passes=sum(group.backward_passes for group in phase.groups),
        low_passes=sum(
            float(low_share(group, data).sum()) * group.pass_equivalents / group.cohort_size
            for group in phase.groups
        ),
    )


def question_cost(
    phase: Phase, stop: Stop, params: Params, model_state: ModelState, validation: FederatedData
) -> Cost:
    """Returns the cost of a question: a model down, one integer up, one forward pass."""
    tiers = np.asarray(validation.client_tiers)
    asked = np.isin(tiers, TIERS[stop.tiers])
    model = jax.eval_shape(lambda *model: stop.sent(start(phase, *model)), params, model_state)
    keeps = phase.keeping is not None and phase.keeping.on_client
    examples = 0.0 if keeps else float(np.asarray(validation.client_sizes)[asked].mean())
    low = float((asked & (tiers == LOW)).sum()) / max((tiers == LOW).sum(), 1)
    count, answer = int(asked.sum()), np.dtype(np.int32).itemsize
    return Cost(
        at_start=0,
        uplink=answer * count,
        downlink=count * trees.num_bytes(model),
        low_uplink=answer * low,
        forward_passes=count * examples,
        backward_passes=0.0,
        low_passes=low * examples,
    )


class GroupTraffic(NamedTuple):
    """Bytes that one group's clients send and receive in a round.

    Attributes:
      uplink: of the cohort.
      downlink: of the cohort.
      received: downlink of one client in it.
      broadcast: downlink of one client that replays the round.
      low_uplink: of one low-resource client, the mean over all of them.
    """

    uplink: int
    downlink: int
    received: int
    broadcast: int
    low_uplink: float


def group_traffic(
    group: Group, phase: Phase, params: Params, model_state: ModelState, data: FederatedData
) -> GroupTraffic:
    """Returns the traffic of one group of a phase; the arguments are ``phase_cost``'s."""
    client = traced_once(group).client

    def one(params, model_state, data):
        state = start(phase, params, model_state)._replace(opt_state=())
        batch = first_client(data)
        own = keys.of_round(keys.run_key(0), 0).of(batch.client_id)
        result = client.update(state, batch, own)
        return result, client.decode(result.message, state, own), client.receives(state)

    result, update, received = jax.eval_shape(one, params, model_state, data)
    message, uploaded = trees.num_bytes(result.message), trees.num_bytes(result.model_state)
    sent = _sent(group, message, data) + uploaded
    # All messages, or their sum where that is smaller (shared directions, pools).
    broadcast = min(group.cohort_size * message, trees.num_bytes(update)) + uploaded
    return GroupTraffic(
        uplink=round(group.cohort_size * sent.mean()),
        downlink=group.cohort_size * trees.num_bytes(received),
        received=trees.num_bytes(received),
        broadcast=broadcast,
        low_uplink=float(sent @ low_share(group, data)),
    )


def low_share(group: Group, data: FederatedData) -> np.ndarray:
    """Returns ``f64[E]``, each client's share in a round of the mean low-resource client.

    The sum is the chance that a low-resource client takes part in a round.
    """
    is_low = np.asarray(data.client_tiers) == LOW
    participation = group.cohort_size / len(group.eligible)
    return is_low[group.eligible] * participation / max(is_low.sum(), 1)


def first_client(data: FederatedData):
    """Returns the first client's batch."""
    return trees.squeeze(cohorts.gather(data, jnp.zeros(1, jnp.int32)))


def _sent(group: Group, message: int, data: FederatedData) -> np.ndarray:
    """Returns ``f64[E]``, the bytes that each client sends; a whole message has ``message``."""
    sent_bytes: Callable[..., Any] | None = group.client.sent_bytes
    if sent_bytes is None:
        return np.full(len(group.eligible), float(message))

    def one(data, client_id):
        return sent_bytes(trees.squeeze(cohorts.gather(data, client_id[None])))

    sizes = jax.jit(lambda data, ids: jax.lax.map(lambda i: one(data, i), ids))
    return np.asarray(sizes(data, group.eligible), np.float64)
