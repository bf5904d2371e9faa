"""What every algorithm must satisfy. New ones are picked up from ``ALGORITHMS``, unmodified."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import tiny
from zo_fl import cost, train, trees
from zo_fl.algorithms import ALGORITHMS
from zo_fl.round import Engine, make_algorithm
from zo_fl.types import Cohort

# Rounding differs with the layout, and a loss difference of 1e-3 divided by 2 eps magnifies it:
# updates of order 0.1 agree to four digits.
TOLERANCE = dict(rtol=2e-4, atol=2e-5)


@functools.cache
def phases_of(name, devices=1):
    built = tiny.build(name, run__num_devices=devices)
    return [(built, phase) for phase in built.phases]


@pytest.fixture(params=sorted(ALGORITHMS))
def phases(request):
    return phases_of(request.param)


@functools.cache
def run_all(name, devices=1):
    """Two rounds of each phase from the start: its state, its metrics, and the jitted round."""
    return [run(built, phase) for built, phase in phases_of(name, devices)]


def run(built, phase):
    state = tiny.start(built, phase)
    step = jax.jit(phase.algorithm.round)
    history = []
    for _ in range(tiny.ROUNDS):
        state, metrics, _ = step(state, built.data, built.run_key)
        history.append(jax.device_get(metrics))
    return state, history, step


def with_cohort(built, phase, client_ids, valid, clients_per_vmap=1):
    """One round of the phase's strategy on a given cohort, by plain SGD at the server."""
    cohort = Cohort(jnp.array(client_ids, jnp.int32), jnp.array(valid))
    engine = Engine(built.mesh, clients_per_vmap)
    algorithm = make_algorithm(phase.strategy, optax.sgd(1.0), lambda key: cohort, engine)
    start = tiny.start(built, phase)
    state = algorithm.init(start.params, start.model_state)
    return jax.jit(algorithm.round)(state, built.data, built.run_key)


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_two_rounds_change_the_parameters_and_report_finite_metrics(name):
    for state, history, _ in run_all(name):
        assert int(state.round_idx) == tiny.ROUNDS
        assert history[0]["update_norm"] > 0 and history[0] != history[1]
        for metrics in history:
            assert np.isfinite(metrics["loss"])


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_the_state_keeps_its_shapes_and_dtypes_and_the_round_its_one_trace(name):
    for (built, phase), (after, _, step) in zip(phases_of(name), run_all(name), strict=True):
        chex.assert_trees_all_equal_shapes_and_dtypes(tiny.start(built, phase), after)
        assert step._cache_size() == 1


@pytest.mark.parametrize("clients_per_vmap", (2, 3, 8))
def test_the_result_does_not_depend_on_clients_per_vmap(phases, clients_per_vmap):
    for built, phase in phases:
        reference = with_cohort(built, phase, range(8), [True] * 8)[0]
        padding = -8 % clients_per_vmap
        ids, valid = [*range(8), *[0] * padding], [True] * 8 + [False] * padding
        got = with_cohort(built, phase, ids, valid, clients_per_vmap)[0]
        chex.assert_trees_all_close(got.params, reference.params, **TOLERANCE)


def test_the_result_does_not_depend_on_the_order_of_the_cohort(phases):
    for built, phase in phases:
        reference = with_cohort(built, phase, [1, 4, 6], [True] * 3)[0]
        got = with_cohort(built, phase, [6, 1, 4], [True] * 3)[0]
        chex.assert_trees_all_close(got.params, reference.params, **TOLERANCE)


def test_a_padding_client_changes_nothing(phases):
    for built, phase in phases:
        reference, metrics, _ = with_cohort(built, phase, [1, 4], [True, True])
        got, padded, _ = with_cohort(built, phase, [1, 4, 7], [True, True, False])
        chex.assert_trees_all_equal(got.params, reference.params)
        assert metrics["loss"] == padded["loss"]


@pytest.mark.parametrize("devices", (2, 8))
@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_the_result_does_not_depend_on_the_number_of_devices(name, devices):
    for reference, got in zip(run_all(name), run_all(name, devices), strict=True):
        chex.assert_trees_all_close(got[0].params, reference[0].params, **TOLERANCE)


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_a_chunk_of_rounds_equals_as_many_single_rounds(name):
    for (built, phase), (reference, history, _) in zip(phases_of(name), run_all(name), strict=True):
        chunk = train.make_chunk(phase.algorithm, capacity=5)
        state, metrics = chunk(tiny.start(built, phase), built.data, built.run_key, jnp.int32(2))
        chex.assert_trees_all_close(state.params, reference.params, **TOLERANCE)
        losses = [one["loss"] for one in history]
        np.testing.assert_allclose(metrics["loss"], [*losses, 0, 0, 0], rtol=1e-5)


def test_reported_bytes_are_the_bytes_of_the_messages(phases):
    for built, phase in phases:
        state = tiny.start(built, phase)
        traffic = cost.phase_traffic(phase, state.params, state.model_state, built.data)
        batch = trees.squeeze(tiny.gather(built, [3]))
        result = phase.strategy.client_update(state.params, state.model_state, batch, built.run_key)
        sent = trees.num_bytes(result.message) + trees.num_bytes(result.model_state)
        assert traffic.uplink == phase.cohort_size * sent
