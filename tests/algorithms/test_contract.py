"""What every algorithm must satisfy. New ones are picked up from ``ALGORITHMS``, unmodified."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from zo_fl.engine import cohorts, keys, trees
from zo_fl.engine.layout import Engine
from zo_fl.engine.round import make_algorithm
from zo_fl.engine.types import Cohort
from zo_fl.host.traffic import phase_traffic
from zo_fl.methods import ALGORITHMS

pytestmark = pytest.mark.slow

# Rounding differs with the layout, and a loss difference of 1e-3 divided by 2 eps magnifies it:
# updates of order 0.1 to 1 agree to four digits.
TOLERANCE = dict(rtol=2e-4, atol=1e-4)
# Where clients are laid out otherwise sums are added up in another order.
NEARLY = dict(rtol=1e-5, atol=1e-6)
MAGNIFIED = dict(rtol=1e-4, atol=1e-5)  # by a matrix that is inverted
SOLVED = ("ridge", "ridge_cg", "gaussian_head")


class Item:
    """A phase of an experiment; hashed by identity."""

    def __init__(self, built, phase, before):
        self.value, self.before = (built, phase), before

    def start(self):
        """The phase's first state; a new one, for rounds may donate theirs."""
        built, phase = self.value
        state = tiny.start(built, phase)
        if not phase.continues:
            return state
        earlier = run_all_of(self.before)[0]
        return state._replace(params=earlier.params, strategy_state=earlier.strategy_state)


@functools.cache
def phases_of(name, devices=1):
    built, items = tiny.build(name, run__num_devices=devices), []
    for phase in built.phases:
        items.append(Item(built, phase, items[-1] if items else None))
    return items


@pytest.fixture(params=sorted(ALGORITHMS))
def phases(request):
    return phases_of(request.param)


@functools.cache
def run_all(name):
    """Two rounds of each phase from the start: its state, its metrics, and the jitted round."""
    return [run_all_of(item) for item in phases_of(name)]


@functools.cache
def run_all_of(item):
    (built, phase), state, step = item.value, item.start(), round_of(item)
    history = []
    for _ in range(tiny.ROUNDS):
        state, metrics, _ = step(state, built.data_of(phase), built.run_key, drawn(item, state))
        history.append(jax.device_get(metrics))
    return state, history, step


@functools.cache
def round_of(item):
    """The phase's round as a jitted function of the cohorts of its groups."""
    built, phase = item.value
    clients_per_vmap = 1 if built.engine.mesh.size == 1 else 3

    def one(state, data, run_key, cohorts):
        groups = [
            group._replace(sample_cohort=lambda key, cohort=cohort: cohort)
            for group, cohort in zip(phase.groups, cohorts, strict=True)
        ]
        engine = Engine(built.engine.mesh, clients_per_vmap)
        return make_algorithm(phase._replace(groups=groups), engine).round(state, data, run_key)

    return jax.jit(one)


def drawn(item, state):
    """The cohorts that the phase itself draws for the state's round."""
    built, phase = item.value
    key = keys.round_key(built.run_key, state.round_idx)
    return [group.sample_cohort(key) for group in phase.groups]


def with_cohort(item, order, padding=()):
    """One round with a given cohort in each group, of the size that it has anyway.

    ``order`` gives the ids of so many clients, ``padding`` takes no part, in the place of the last.
    """
    built, phase = item.value
    step, cohorts = round_of(item), []
    for group in phase.groups:
        ids = list(order(group.cohort_size))
        valid = jnp.arange(group.cohort_size) < len(ids)
        ids = [*ids, *padding][: group.cohort_size]
        cohorts.append(Cohort(jnp.array(ids, jnp.int32), valid))
    return step(item.start(), built.data_of(phase), built.run_key, cohorts)


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_two_rounds_change_the_parameters_and_report_finite_metrics(name):
    # What only prepares, or chooses, may leave them as they are.
    moved = [history[0]["update_norm"] > 0 for _, history, _ in run_all(name)]
    assert any(moved)
    for state, history, _ in run_all(name):
        assert int(state.round_idx) == tiny.ROUNDS
        assert "loss" not in history[0] or (all(moved) and history[0] != history[1])
        for metrics in history:
            assert np.isfinite(list(metrics.values())).all()


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_the_state_keeps_its_shapes_and_dtypes_and_the_round_its_one_trace(name):
    for item, (after, _, step) in zip(phases_of(name), run_all(name), strict=True):
        chex.assert_trees_all_equal_shapes_and_dtypes(item.start(), after)
        assert step._cache_size() == 1


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_on_eight_devices_and_with_several_clients_at_once_it_is_nearly_the_same(name):
    for item, (expected, history, _) in zip(phases_of(name, devices=8), run_all(name), strict=True):
        state, of_eight, _ = run_all_of(item)
        tolerance = MAGNIFIED if name in SOLVED else NEARLY
        chex.assert_trees_all_close(state.params, expected.params, **tolerance)
        losses, of_one = ([m.get("loss", 0.0) for m in each] for each in (of_eight, history))
        np.testing.assert_allclose(losses, of_one, rtol=1e-5)


def test_the_result_does_not_depend_on_the_order_of_the_cohort(phases):
    for item in phases:
        reference = with_cohort(item, range)[0]
        got = with_cohort(item, lambda size: np.random.default_rng(0).permutation(size))[0]
        chex.assert_trees_all_close(got.params, reference.params, **TOLERANCE)


def test_whoever_pads_a_cohort_changes_nothing(phases):
    for item in phases:
        two = lambda size: [1, 4]  # noqa: E731
        reference, metrics, _ = with_cohort(item, two, padding=[0] * 6)
        got, padded, _ = with_cohort(item, two, padding=[7, 6, 5, 4, 3, 2])
        chex.assert_trees_all_equal(got.params, reference.params)
        assert metrics == padded


def test_reported_bytes_are_the_bytes_of_the_messages(phases):
    for built, phase in (item.value for item in phases):
        state = tiny.start(built, phase)
        data = built.data_of(phase)
        traffic = phase_traffic(phase, state.params, state.model_state, data)
        uplink = 0
        for group in phase.groups:
            strategy = group.strategy
            for client in group.eligible if strategy.sent_bytes else [3] * group.cohort_size:
                batch = trees.squeeze(cohorts.gather(data, jnp.array([client])))
                result = jax.eval_shape(strategy.client_update, state, batch, built.run_key)
                uplink += trees.num_bytes(result.model_state)
                # What a message leaves out, its own file says (and its own test checks).
                whole = trees.num_bytes(result.message)
                sent = strategy.sent_bytes(batch) if strategy.sent_bytes else whole
                assert sent <= whole + 2
                uplink += int(sent)
        assert traffic.uplink == uplink
