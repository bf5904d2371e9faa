"""A run as a generator of chunks of rounds; whoever logs, shows or saves them takes one by one.

A chunk is one jitted program whose length is an argument, so that each phase compiles once whatever
the cadence of evaluation. What a chunk leaves behind depends on the round alone, not on where a run
was stopped: a resumed run ends bit-identical to one that never stopped.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
      schedule: the run's, as it is known now: phases may have ended early.
      phase: that the rounds belong to.
      rounds: of the run, from 1.
      state: after them. It is donated to the next chunk.
      position: of the run after them.
      metrics: an array each, one number a round or more.
      sent: leaves ``[R, ...]``, what clients sent in each round; None where rounds do not replay.
      measured: what was evaluated after the last round; {} if nothing was due.
      seconds: that they took.
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
    compiled: Compiled,
    state: ServerState,
    position: Position,
    options: Mapping[str, Any],
    clock: Stopwatch,
    screen: Progress,
) -> Iterator[Chunk]:
    """Yields the chunks of a run that are not done yet.

    Args:
      compiled: the device's side of the run.
      state: at the position.
      position: where the run is.
      options: the config block ``run``.
      clock: told what time is spent on.
      screen: told what is being compiled.
    """
    schedule, before = compiled.planned.ended(position.ended), None
    for place in range(len(schedule.phases)):
        phase = schedule.phases[place]
        if before is not None and position.done == phase.start:
            state = compiled.hand_over(before, phase, state)
            position = position._replace(best=-1, waited=0)
        before = phase
        if position.done >= phase.end:
            continue
        of_phase = _of_phase(compiled, schedule, phase, state, position, options, clock, screen)
        for chunk in of_phase:
            yield chunk
            schedule, state, position = chunk.schedule, chunk.state, chunk.position
        before = schedule.phases[place]


def _of_phase(
    compiled: Compiled,
    schedule: Schedule,
    phase: ScheduledPhase,
    state: ServerState,
    position: Position,
    options: Mapping[str, Any],
    clock: Stopwatch,
    screen: Progress,
) -> Iterator[Chunk]:
    """Yields the chunks of one phase; the arguments are those of ``rounds``."""

    @contextmanager
    def compiling(name: str) -> Iterator[None]:
        with clock.during("compiling"), screen.compiling(name):
            yield

    cuts = chunks(phase, position.done, options)
    feed = compiled.feed(phase.phase, state, cuts)
    data = next(feed)
    program = compiled.chunk(phase, state, data, compiling)
    for begin, end in cuts:
        began = time.perf_counter()
        with clock.during("rounds"):
            state, *measured = program(state, data, end - begin)
            data = next(feed, data)  # the next chunk's, while the devices compute this one
            metrics, *sent = jax.device_get(measured)
        position, found = position._replace(done=end), {}
        if phase.asks(end):
            with clock.during("evaluating"):
                state, position, found = _ask(compiled, phase, state, position)
            schedule = compiled.planned.ended(position.ended)
            phase = schedule.phases[phase.place]
        seconds = time.perf_counter() - began
        if _is_due(schedule, phase, end, options):
            with clock.during("evaluating"):
                model = compiled.model_of(phase.phase.model, state)
                found = compiled.evaluate(phase.phase, model) | found
        yield Chunk(
            schedule=schedule,
            phase=phase,
            rounds=range(begin + 1, end + 1),
            state=state,
            position=position,
            metrics=metrics,
            sent=sent[0] if sent else None,
            measured=found,
            seconds=seconds,
        )
        if end >= phase.end:
            return


def _ask(
    compiled: Compiled, phase: ScheduledPhase, state: ServerState, position: Position
) -> tuple[ServerState, Position, dict[str, float]]:
    """Returns state, position and what was measured after a question of the phase's ``Stop``."""
    stop = phase.phase.stop
    assert isinstance(stop, Stop)
    count, accuracy = compiled.count_right(phase.phase, stop, state)
    if count > position.best:
        position = position._replace(best=count, waited=0)
        state = compiled.keep(stop, state)
    else:
        position = position._replace(waited=position.waited + 1)
    if position.waited >= stop.patience and position.done < phase.end:
        ended = (*position.ended, (phase.place, position.done))
        position = position._replace(ended=ended)
    return state, position, {"check_accuracy": accuracy}


def _is_due(
    schedule: Schedule, phase: ScheduledPhase, done: int, options: Mapping[str, Any]
) -> bool:
    """Returns whether the model is to be evaluated after a round."""
    if done % options["eval_every"] and done != phase.end:
        return False
    if done < schedule.end:
        return phase.phase.evaluated is not None
    # A run of what only prepares is where others start from.
    return any(one.phase.evaluated is not None for one in schedule.phases)
