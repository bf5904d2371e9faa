"""How a cohort is laid out on devices: chunks and padding."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tiny
from zo_fl.engine import layout as engine
from zo_fl.engine.layout import EXAMPLES_AT_ONCE, Engine
from zo_fl.engine.strategy import ClientStrategy, Group
from zo_fl.engine.types import Cohort
from zo_fl.host.devices import make_mesh

OWN_WEIGHTS = ClientStrategy(client_update=lambda: None)
ONE_MODEL = OWN_WEIGHTS._replace(one_model=True)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    cohort_size=st.sampled_from([1, 2, 7, 8, 40]),
    devices=st.sampled_from([1, 2, 4, 8]),
    clients_per_vmap=st.integers(0, 9),
    examples=st.sampled_from([1, 100, 300, 5000]),
    strategy=st.sampled_from([OWN_WEIGHTS, ONE_MODEL]),
)
def test_every_device_gets_whole_chunks_and_every_client_a_place(
    cohort_size, devices, clients_per_vmap, examples, strategy
):
    layout = Engine(make_mesh("cpu", devices), clients_per_vmap)
    ids = jnp.arange(cohort_size, dtype=jnp.int32) + 3
    group = Group(strategy, lambda key: None, cohort_size, 0.0, np.arange(cohort_size))
    padded, loop = layout.lay_out(group, Cohort(ids, jnp.ones(cohort_size, bool)), examples)
    size = loop.chunk_size
    assert padded.client_ids.shape[0] % (devices * size) == 0
    assert padded.client_ids.shape[0] - cohort_size < devices * size
    np.testing.assert_array_equal(padded.client_ids[:cohort_size], ids)
    np.testing.assert_array_equal(padded.valid, np.arange(len(padded.valid)) < cohort_size)
    assert 1 <= size <= -(-cohort_size // devices)
    if not clients_per_vmap:
        assert size == 1 or (strategy.one_model and size * examples <= EXAMPLES_AT_ONCE)


@pytest.mark.slow
@pytest.mark.parametrize("local_steps", [1, 2])
def test_shared_directions_are_drawn_once_for_all_clients_of_a_chunk(local_steps):
    built = tiny.build("zo", zo__seed_policy="shared", zo__local_steps=local_steps)
    (phase,) = built.phases
    (group,) = phase.groups
    assert group.strategy.one_model == (local_steps == 1)
    state = tiny.start(built, phase)
    text = (
        jax.jit(tiny.algorithm(built, phase).round)
        .lower(state, built.data, built.run_key)
        .as_text()
    )
    examples = built.data.client_indices.shape[1]
    # The first layer sees all clients' images in one product with one kernel, not a kernel each.
    clients = min(EXAMPLES_AT_ONCE // examples, group.cohort_size)
    one_batch = f"tensor<{clients}x{examples}x192xf32>, tensor<192x64xf32>"
    assert (one_batch in text) == (local_steps == 1)


@pytest.mark.slow
@pytest.mark.parametrize("run", [{"clients_per_vmap": 1}, {"clients_per_vmap": 1, "unroll": 4}])
def test_one_batch_for_all_clients_gives_what_clients_one_by_one_give(run):
    def after(**fields):
        built = tiny.build("zo", zo__seed_policy="shared", **fields)
        (phase,) = built.phases
        state = tiny.start(built, phase)
        return jax.jit(tiny.algorithm(built, phase).round)(state, built.data, built.run_key)

    expected = after(**{f"run__{name}": value for name, value in run.items()})
    got = after()
    chex.assert_trees_all_close(got[0].params, expected[0].params, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got[1]["loss"], expected[1]["loss"], rtol=1e-5)


def test_only_options_that_the_compiler_knows_are_used(monkeypatch):
    mesh = make_mesh("cpu", 1)
    known = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    monkeypatch.setattr(engine, "_COMPILER_OPTIONS", {"cpu": known | {"xla_no_such": "1"}})
    assert Engine(mesh).compiler_options == known
    monkeypatch.setattr(engine, "_COMPILER_OPTIONS", {"tpu": known})
    assert Engine(mesh).compiler_options == {}


@pytest.mark.slow
def test_the_first_weights_are_the_same_however_quickly_they_are_drawn():
    built = tiny.build()
    levels = {"xla_backend_optimization_level": 3}, built.engine.compiler_options_once
    one, other = (jax.jit(built.task.init, compiler_options=of)(built.run_key) for of in levels)
    assert built.engine.compiler_options_once and levels[0] != levels[1]
    chex.assert_trees_all_equal(one, other)


@pytest.mark.slow
def test_a_barrier_keeps_perturbed_weights_from_being_computed_anew():
    built = tiny.build("zo", model__name="cnn", model__norm="group")
    (phase,) = built.phases
    state = tiny.start(built, phase)
    options = built.engine.compiler_options
    assert len(options) == 3, "an option is gone: measure again (experiments/PERFORMANCE.md)"
    step = jax.jit(tiny.algorithm(built, phase).round, compiler_options=options)
    text = step.lower(state, built.data, built.run_key).compile().as_text()
    assert "opt-barrier" in text
