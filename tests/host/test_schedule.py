"""Which rounds belong to which phase, when a phase ends early, and what it all costs."""

import itertools

import jax
import numpy as np
import pytest

from tests import tiny
from zo_fl.compiled import make_chunk
from zo_fl.engine.round import make_algorithm
from zo_fl.host.schedule import chunks, make_schedule

OPTIONS = {"rounds_per_jit": 5, "eval_every": 7, "checkpoint_every": 100}


def schedule_of(built, phases):
    shapes = jax.eval_shape(built.task.init, built.run_key)
    return make_schedule(phases, *shapes, built.federation.clients, built.federation.validation)


@pytest.fixture(scope="module")
def schedule():
    """Two rounds, up to twenty with a question to everyone after each fourth, two more."""
    changes = {"warmup__num_rounds": 20, "warmup__stop": "population"}
    built = tiny.build("zo+fedavg+fedkseed", **changes)
    first, watched, last = built.phases
    watched = watched._replace(stop=watched.stop._replace(every=4))
    return schedule_of(built, (first, watched, last))


def spans(schedule):
    return [(phase.start, phase.end) for phase in schedule.phases]


def test_chunks_end_where_something_is_due(schedule):
    watched = schedule.phases[1]
    cuts = chunks(watched, watched.start, OPTIONS)
    assert cuts == [(2, 3), (3, 6), (6, 7), (7, 10), (10, 14), (14, 18), (18, 21), (21, 22)]
    assert [stop for _, stop in cuts if watched.asks(stop)] == [6, 10, 14, 18, 22]
    assert chunks(schedule.phases[0], 0, OPTIONS) == [(0, 1), (1, 2)]


def test_a_phase_that_ends_early_moves_those_after_it(schedule):
    ended = schedule.ended([(1, 10)])
    assert spans(ended) == [(0, 2), (2, 10), (10, 12)] and ended.end == 12 and ended.pivot == 2
    assert spans(schedule) == [(0, 2), (2, 22), (22, 24)]
    assert ended.at(10).place == 1 and ended.at(11).place == 2


def test_the_last_phase_may_take_the_rounds_that_are_saved(schedule):
    first, watched, last = schedule.phases
    stop = watched.phase.stop._replace(hands_over=True)
    watched = watched._replace(phase=watched.phase._replace(stop=stop))
    ended = schedule._replace(phases=(first, watched, last)).ended([(1, 10)])
    assert spans(ended) == [(0, 2), (2, 10), (10, 24)]


def test_questions_are_billed_with_the_round_that_they_follow(schedule):
    each, question = (cost.uplink for cost in schedule.phases[1].bill())
    sent = [schedule.cost_by(done).uplink for done in range(2, 23)]
    steps = [later - earlier for earlier, later in itertools.pairwise(sent)]
    assert steps[:8] == [each, each, each, each + question] * 2 and question == 8 * 4
    # Ended between two questions, the last round is followed by one.
    assert schedule.ended([(1, 9)]).cost_by(9).uplink == sent[0] + 7 * each + 2 * question
    low = [schedule.cost_by(done) for done in (5, 6)]  # it has no part in first-order rounds
    assert low[1].low_uplink - low[0].low_uplink == 4 and low[1].low_passes > low[0].low_passes


@pytest.mark.slow
def test_a_client_is_traced_once_for_its_bill_and_its_rounds():
    built = tiny.build("zo")
    (phase,) = built.phases
    (group,), traced = phase.groups, []

    def update(*arguments):
        traced.append(True)
        return group.client.update(*arguments)

    client = group.client._replace(update=update)
    phase = phase._replace(groups=(group._replace(client=client),))
    assert schedule_of(built, [phase]).cost_by(1).uplink > 0 and traced == [True]
    chunk = make_chunk(lambda numbers: make_algorithm(phase, built.engine), capacity=2)
    state = tiny.start(built, phase)
    jax.jit(chunk).lower(state, built.data, built.run_key, np.int32(1), {})
    assert traced == [True]
