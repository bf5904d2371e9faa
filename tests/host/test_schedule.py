"""Which rounds belong to which phase, when a phase ends early, and what it all costs."""

import itertools

import jax
import numpy as np
import pytest

from tests import tiny
from zo_fl import api as train
from zo_fl.engine.chunk import make_chunk
from zo_fl.engine.errors import ConfigError
from zo_fl.engine.round import make_algorithm
from zo_fl.host.schedule import chunks, make_schedule

OPTIONS = {"rounds_per_jit": 5, "eval_every": 7, "checkpoint_every": 100}
CHECKED = {"ridge_cg__num_rounds": 20, "ridge_cg__check_every": 4}
CHECKED["ridge_cg__preconditioner"] = "none"


@pytest.fixture(scope="module")
def schedule():
    built = tiny.build("ridge_cg+head_sgd", **CHECKED)
    params, model_state = jax.eval_shape(built.task.init, built.run_key)
    return make_schedule(built.phases, params, model_state, built.data_of)


def test_chunks_end_where_something_is_due(schedule):
    iterations = schedule.stretches[1]
    cuts = chunks(iterations, iterations.start, OPTIONS)
    assert cuts == [(1, 5), (5, 7), (7, 9), (9, 13), (13, 14), (14, 17), (17, 21)]
    assert [stop for _, stop in cuts if iterations.is_checked(stop)] == [5, 9, 13, 17, 21]
    assert chunks(schedule.stretches[0], 0, OPTIONS) == [(0, 1)]


def test_a_phase_that_ends_early_moves_those_after_it(schedule):
    ended = schedule.ended(1, 9)
    spans = [(s.start, s.end) for s in ended.stretches]
    assert spans == [(0, 1), (1, 9), (9, 11)] and ended.end == 11 and ended.pivot == 1
    assert [(s.start, s.end) for s in schedule.stretches] == [(0, 1), (1, 21), (21, 23)]


def test_the_last_phase_may_take_the_rounds_that_are_saved(schedule):
    first, iterations, last = schedule.stretches
    check = iterations.phase.check._replace(hands_over=True)
    phase = iterations.phase._replace(check=check)
    ended = schedule._replace(stretches=(first, iterations._replace(phase=phase), last)).ended(1, 9)
    assert [(s.start, s.end) for s in ended.stretches] == [(0, 1), (1, 9), (9, 23)]


def test_checks_are_billed_with_the_round_that_they_follow(schedule):
    iterations = schedule.stretches[1]
    each, check = iterations.round.traffic.uplink, iterations.check.traffic.uplink
    sent = [schedule.traffic(done)[0] for done in range(1, 23)]
    steps = [later - earlier for earlier, later in itertools.pairwise(sent)]
    assert steps[:8] == [each, each, each, each + check] * 2 and check == 8 * 4
    # Ended between two checks, the last iteration is followed by one.
    assert schedule.ended(1, 7).traffic(7)[0] == sent[0] + 6 * each + 2 * check
    passes = schedule.of_low_client(5)[1] - schedule.of_low_client(4)[1]
    assert passes > schedule.of_low_client(4)[1] - schedule.of_low_client(3)[1]


def test_seeds_side_by_side_cannot_end_at_rounds_of_their_own(tmp_path):
    with pytest.raises(
        ConfigError,
        match="let it have all its rounds .* or leave out --vmap_seeds and --vmap_values",
    ):
        train.run_seeds(tiny.config("ridge_cg", **CHECKED), tmp_path, 2, quiet=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ("zo", "fedavg"))
def test_a_client_is_traced_once_for_its_bill_and_its_rounds(name):
    built = tiny.build(name)
    (phase,) = built.phases
    (group,), traced = phase.groups, []

    def client_update(*arguments):
        traced.append(name)
        return group.strategy.client_update(*arguments)

    strategy = group.strategy._replace(client_update=client_update)
    phase = phase._replace(groups=(group._replace(strategy=strategy),))
    shapes = jax.eval_shape(built.task.init, built.run_key)
    schedule = make_schedule([phase], *shapes, lambda _: built.federation.clients)
    assert schedule.traffic(1)[0] > 0 and traced == [name]
    chunk = make_chunk(make_algorithm(phase, built.engine), capacity=2)
    chunk.lower(tiny.start(built, phase), built.data, built.run_key, np.int32(1))
    assert traced == [name]
