"""A run as a generator of chunks of rounds; ``api`` logs, shows and saves them one by one.

A chunk is one jitted program whose length is an argument, so that each phase compiles once whatever
the cadence of evaluation. Its results depend on the round alone, not on where a run was stopped: a
resumed run ends bit-identical to one that never stopped.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from zo_fl.compiled import Compiled
from zo_fl.engine.algorithm import ServerState, Stop
from zo_fl.engine.types import PyTree
from zo_fl.host.schedule import Position, Schedule, ScheduledPhase, chunks
from zo_fl.host.screen import Progress, Stopwatch


class Chunk(NamedTuple):
    """Some rounds that were just done.

    Attributes:
      schedule: the run's; phases may have ended early.
      phase: of the rounds.
      rounds: of the run, from 1.
      state: after them. It is donated to the next chunk.
      position: of the run after them.
      metrics: an array each, one number a round or more.
      sent: leaves ``[R, ...]``, the record of each round; None where rounds do not replay.
      measured: losses and accuracies after the last round; {} if none were due.
      seconds: that the rounds took.
    """

    schedule: Schedule
    phase: ScheduledPhase
    rounds: range
    state: ServerState
    position: Position
    metrics: Mapping[str, np.ndarray]
    sent: PyTree
    measured: Mapping[str, Any]
    seconds: float


def first_state(compiled: Compiled, position: Position) -> ServerState:
    """Returns a state with the shapes of the one at a position of the run; at 0 the first itself.

    At the end of a phase that is the phase's last state, not the next one's first.
    """
    schedule = compiled.planned.ended(position.ended)
    phase = schedule.at(max(position.done, 1)).phase
    return compiled.start(phase, compiled.first, 0)


def rounds(
    compiled: Compiled, state: ServerState, position: Position, clock: Stopwatch, screen: Progress
) -> Iterator[Chunk]:
    """Yields the chunks of a run that are not done yet, from the state at a position on."""
    schedule = compiled.planned.ended(position.ended)
    for place in range(len(schedule.phases)):
        phase = schedule.phases[place]
        if place and position.done == phase.start:
            state = compiled.hand_over(schedule.phases[place - 1], phase, state)
            position = position._replace(best=-1, waited=0)
        if position.done < phase.end:
            for chunk in _of_phase(compiled, phase, state, position, clock, screen):
                yield chunk
                schedule, state, position = chunk.schedule, chunk.state, chunk.position


def _of_phase(
    compiled: Compiled,
    phase: ScheduledPhase,
    state: ServerState,
    position: Position,
    clock: Stopwatch,
    screen: Progress,
) -> Iterator[Chunk]:
    """Yields the chunks of one phase."""
    schedule = compiled.planned.ended(position.ended)
    cuts = chunks(phase, position.done, compiled.options)
    feed = compiled.feed(phase.phase, state, cuts)
    data = next(feed)
    with clock.during("compiling"), screen.compiling(phase.phase.name):
        program = compiled.chunk(phase, state, data)
    for begin, end in cuts:
        began = time.perf_counter()
        with clock.during("rounds"):
            state, *measured = program(state, data, end - begin)
            # While the devices compute: the next chunk's data, and what a round costs.
            data = next(feed, data)
            phase.bill()
            metrics, *sent = jax.device_get(measured)
        position, found = position._replace(done=end), {}
        if phase.asks(end):
            with clock.during("evaluating"):
                state, position, found = _ask(compiled, phase, state, position)
            schedule = compiled.planned.ended(position.ended)
            phase = schedule.phases[phase.place]
        seconds = time.perf_counter() - began
        if _is_due(schedule, phase, end, compiled.options["eval_every"]):
            with clock.during("evaluating"):
                model = compiled.model_of(phase.phase.model, state)
                found = compiled.evaluate(phase.phase, model) | found
        done, record = range(begin + 1, end + 1), sent[0] if sent else None
        yield Chunk(schedule, phase, done, state, position, metrics, record, found, seconds)
        if end >= phase.end:
            return


def _ask(
    compiled: Compiled, phase: ScheduledPhase, state: ServerState, position: Position
) -> tuple[ServerState, Position, dict[str, float]]:
    """Asks the question of a phase's ``Stop``; returns state and position after it, and a row."""
    stop = phase.phase.stop
    assert isinstance(stop, Stop)
    count, accuracy = compiled.count_right(phase.phase, stop, state)
    if count > position.best:
        position = position._replace(best=count, waited=0)
        state = compiled.keep(stop, state)
    else:
        position = position._replace(waited=position.waited + 1)
    if position.waited >= stop.patience and position.done < phase.end:
        position = position._replace(ended=(*position.ended, (phase.place, position.done)))
    return state, position, {"check_accuracy": accuracy}


def _is_due(schedule: Schedule, phase: ScheduledPhase, done: int, every: int) -> bool:
    """Returns whether the model is to be evaluated after a round."""
    if done % every and done != phase.end:
        return False
    if done < schedule.end:
        return phase.phase.evaluated is not None
    # A run whose phases all only prepare is a start for others: it has no model to evaluate.
    return any(one.phase.evaluated is not None for one in schedule.phases)
