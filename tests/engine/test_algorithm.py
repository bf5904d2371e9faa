"""What one phase hands to the next."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from tests import tiny
from zo_fl.compiled import Compiled
from zo_fl.engine import algorithm, server
from zo_fl.engine.algorithm import Phase

PARAMS = {"w": jnp.array([1.0, 2.0])}


def phase_of(made, **fields):
    return Phase("test", 1, (), made, **fields)


def test_a_phase_starts_with_a_fresh_optimizer_and_what_the_phase_before_remembers():
    def remembered(params, before):
        return {"seen": jnp.int32(0)} if before is None else {"seen": before["seen"] + 1}

    adam = server.optimizer("adam", 0.1)
    second = phase_of(server.descend(adam, init=remembered))
    first = algorithm.start(second, PARAMS, {})
    assert first.strategy_state["seen"] == 0 and first.round_idx == 0
    after = algorithm.start(second, PARAMS, {"m": 1.0}, 7, first.strategy_state)
    assert after.strategy_state["seen"] == 1 and after.round_idx == 7
    assert after.round_idx.dtype == jnp.int32 and after.model_state == {"m": 1.0}
    chex.assert_trees_all_equal(after.opt_state, adam.init(PARAMS))


def test_a_method_that_remembers_nothing_leaves_behind_what_it_is_handed():
    for made in (server.descend(optax.sgd(1.0)), server.assign(lambda *_: None)):
        assert algorithm.start(phase_of(made), PARAMS, {}, 3, {"other": 1}).strategy_state == ()


@pytest.mark.slow
def test_the_next_phase_starts_from_the_model_that_was_evaluated():
    built = tiny.build("zo")
    (phase,) = built.phases

    def evaluated(state, data):
        return jax.tree.map(lambda leaf: leaf + 1, state.params), state.model_state

    built = built._replace(phases=(phase._replace(evaluated=evaluated), phase))
    compiled = Compiled(built, tiny.config("zo")["run"])
    state = tiny.start(built, phase)
    first = compiled.hand_over(*compiled.planned.phases, state)
    chex.assert_trees_all_equal(first.params, evaluated(state, None)[0])
    assert first.round_idx == tiny.ROUNDS and first.strategy_state == ()


def test_a_phase_that_only_prepares_hands_over_its_state_s_own_model():
    prepares = phase_of(server.descend(optax.sgd(1.0)), evaluated=None)
    state = algorithm.start(prepares, PARAMS, {})
    chex.assert_trees_all_equal(prepares.model(state, None), (PARAMS, {}))
