"""What every algorithm must satisfy. New ones are picked up from ``ALGORITHMS``, unmodified."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import tiny
from zo_fl.algorithms import ALGORITHMS
from zo_fl.core import trees
from zo_fl.core.chunk import make_chunk
from zo_fl.core.engine import Engine
from zo_fl.core.round import make_algorithm
from zo_fl.core.types import Cohort
from zo_fl.host.traffic import phase_traffic

pytestmark = pytest.mark.slow

# Rounding differs with the layout, and a loss difference of 1e-3 divided by 2 eps magnifies it:
# updates of order 0.1 to 1 agree to four digits.
TOLERANCE = dict(rtol=2e-4, atol=1e-4)


class Item:
    """A phase of an experiment; hashed by identity."""

    def __init__(self, built, phase):
        self.value = built, phase


@functools.cache
def phases_of(name, devices=1):
    built = tiny.build(name, run__num_devices=devices)
    return [Item(built, phase) for phase in built.phases]


@pytest.fixture(params=sorted(ALGORITHMS))
def phases(request):
    return phases_of(request.param)


@functools.cache
def run_all(name, devices=1):
    """Two rounds of each phase from the start: its state, its metrics, and the jitted round."""
    return [run(*item.value) for item in phases_of(name, devices)]


def run(built, phase):
    state = tiny.start(built, phase)
    step = jax.jit(tiny.algorithm(built, phase).round)
    history = []
    for _ in range(tiny.ROUNDS):
        state, metrics, _ = step(state, built.data, built.run_key)
        history.append(jax.device_get(metrics))
    return state, history, step


@functools.cache
def round_of(built_and_phase, clients_per_vmap=1):
    """The phase's round as a jitted function of the cohort, the same one for each of its groups."""
    built, phase = built_and_phase.value

    def one(state, data, run_key, cohort):
        groups = [group._replace(sample_cohort=lambda key: cohort) for group in phase.groups]
        engine = Engine(built.mesh, clients_per_vmap)
        plain = phase._replace(groups=groups, server_optimizer=optax.sgd(1.0))
        algorithm = make_algorithm(plain, engine)
        state = algorithm.init(state.params, state.model_state)
        return algorithm.round(state, data, run_key)

    return jax.jit(one)


def with_cohort(item, client_ids, clients_per_vmap=1, padding=0):
    """One round with a given cohort, by plain SGD at the server."""
    built, phase = item.value
    ids = jnp.array([*client_ids, *[0] * padding], jnp.int32)
    cohort = Cohort(ids, jnp.arange(len(ids)) < len(client_ids))
    step = round_of(item, clients_per_vmap)
    return step(tiny.start(built, phase), built.data, built.run_key, cohort)


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_two_rounds_change_the_parameters_and_report_finite_metrics(name):
    for state, history, _ in run_all(name):
        assert int(state.round_idx) == tiny.ROUNDS
        assert history[0]["update_norm"] > 0 and history[0] != history[1]
        for metrics in history:
            assert np.isfinite(metrics["loss"])


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_the_state_keeps_its_shapes_and_dtypes_and_the_round_its_one_trace(name):
    for item, (after, _, step) in zip(phases_of(name), run_all(name), strict=True):
        chex.assert_trees_all_equal_shapes_and_dtypes(tiny.start(*item.value), after)
        assert step._cache_size() == 1


@pytest.mark.parametrize("clients_per_vmap", (3, 8))
def test_the_result_does_not_depend_on_clients_per_vmap(phases, clients_per_vmap):
    for item in phases:
        reference = with_cohort(item, range(8))[0]
        got = with_cohort(item, range(8), clients_per_vmap, padding=-8 % clients_per_vmap)[0]
        chex.assert_trees_all_close(got.params, reference.params, **TOLERANCE)


def test_the_result_does_not_depend_on_the_order_of_the_cohort(phases):
    for item in phases:
        reference = with_cohort(item, range(8))[0]
        got = with_cohort(item, [6, 1, 4, 7, 0, 3, 5, 2])[0]
        chex.assert_trees_all_close(got.params, reference.params, **TOLERANCE)


def test_a_padding_client_changes_nothing(phases):
    for item in phases:
        reference, metrics, _ = with_cohort(item, [1, 4])
        got, padded, _ = with_cohort(item, [1, 4], padding=6)
        chex.assert_trees_all_equal(got.params, reference.params)
        assert metrics["loss"] == padded["loss"]


@pytest.mark.parametrize("devices", (4,))  # two clients on each
@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_the_result_does_not_depend_on_the_number_of_devices(name, devices):
    for reference, got in zip(run_all(name), run_all(name, devices), strict=True):
        chex.assert_trees_all_close(got[0].params, reference[0].params, **TOLERANCE)


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_a_chunk_of_rounds_equals_as_many_single_rounds(name):
    for item, (reference, history, _) in zip(phases_of(name), run_all(name), strict=True):
        built, phase = item.value
        chunk = make_chunk(tiny.algorithm(built, phase), capacity=5)
        state, metrics = chunk(tiny.start(built, phase), built.data, built.run_key, jnp.int32(2))
        chex.assert_trees_all_close(state.params, reference.params, **TOLERANCE)
        losses = [one["loss"] for one in history]
        np.testing.assert_allclose(metrics["loss"], [*losses, 0, 0, 0], rtol=1e-5)


def test_reported_bytes_are_the_bytes_of_the_messages(phases):
    for built, phase in (item.value for item in phases):
        state = tiny.start(built, phase)
        traffic = phase_traffic(phase, state.params, state.model_state, built.data)
        batch = trees.squeeze(tiny.gather(built, [3]))
        uplink = 0
        for group in phase.groups:
            result = group.strategy.client_update(state, batch, built.run_key)
            sent = trees.num_bytes(result.message) + trees.num_bytes(result.model_state)
            uplink += group.cohort_size * sent
        assert traffic.uplink == uplink
