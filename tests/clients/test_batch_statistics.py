"""BatchNorm's running statistics under every policy of the zeroth-order phase."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from zo_fl.engine import statistics as batch_statistics
from zo_fl.engine import trees
from zo_fl.engine.statistics import POLICIES
from zo_fl.host.traffic import phase_traffic

pytestmark = pytest.mark.slow

BATCH_NORM = dict(
    model__name="cnn", model__norm="batch", data__num_clients=40, zo__cohort_size=3, zo__lr=1e-3
)


@functools.cache
def program(policy):
    """The experiment of a policy, its phase, a first state, and the jitted round."""
    built = tiny.build("zo", **BATCH_NORM, zo__bn_policy=policy)
    (phase,) = built.phases
    return built, phase, tiny.start(built, phase), jax.jit(tiny.algorithm(built, phase).round)


@functools.cache
def one_round(policy):
    built, phase, before, step = program(policy)
    # Statistics as after some training, unlike any batch's.
    state = jax.tree.map(lambda leaf: leaf + 0.25, before.model_state)
    before = before._replace(model_state=state)
    after, metrics, (record,) = step(before, built.data, built.run_key)
    return built, phase, before, after, metrics, record


@functools.cache
def batch_moments():
    """Returns ``batch_statistics.batch_moments`` of the model, jitted."""
    task = program("frozen")[0].task
    return jax.jit(functools.partial(batch_statistics.batch_moments, task))


def client_moments(built, before, record):
    """Exact moments of each client's activations at the unperturbed weights."""
    moments = []
    for client_id in record.cohort.client_ids:
        batch = tiny.gather(built, [client_id])
        moments.append(
            batch_moments()(before.params, before.model_state, batch.examples, batch.mask)
        )
    return moments


def mean_of(trees_):
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trees_)


@pytest.mark.parametrize("policy", ("frozen", "batch"))
def test_statistics_stay_bit_for_bit_and_nothing_travels(policy):
    built, phase, before, after, *_ = one_round(policy)
    chex.assert_trees_all_equal(after.model_state, before.model_state)
    traffic = phase_traffic(phase, before.params, before.model_state, built.data)
    assert traffic.uplink == 3 * 12


@pytest.mark.parametrize("policy", ("batch_sync", "recalibrate"))
def test_statistics_that_travel_are_billed(policy):
    built, phase, before, *_ = one_round(policy)
    statistics_bytes = trees.num_bytes(before.model_state)
    assert statistics_bytes == 4 * 2 * (16 + 32 + 64)
    traffic = phase_traffic(phase, before.params, before.model_state, built.data)
    assert traffic.uplink == 3 * (12 + statistics_bytes)
    assert traffic.downlink == 40 * (3 * 12 + statistics_bytes)
    assert phase.forward_passes == 3 * 18 * (2 * 3 + 1)


def test_batch_sync_moves_statistics_by_one_unperturbed_pass_averaged_over_clients():
    built, _, before, after, _, record = one_round("batch_sync")
    moved = [
        batch_statistics.move(before.model_state, batch_statistics.from_moments(moments))
        for moments in client_moments(built, before, record)
    ]
    chex.assert_trees_all_close(after.model_state, mean_of(moved), rtol=1e-4, atol=1e-6)


def test_recalibrate_pools_the_moments_that_clients_have_by_themselves_exact_in_the_first_layer():
    built, _, before, after, _, record = one_round("recalibrate")
    pooled = batch_statistics.from_moments(mean_of(client_moments(built, before, record)))
    chex.assert_trees_all_close(after.model_state, pooled, rtol=1e-3, atol=1e-5)
    # Pooled means of all clients' examples in one batch: the law of total variance holds.
    batch = tiny.gather(built, record.cohort.client_ids)
    examples = jax.tree.map(lambda leaf: leaf.reshape(1, -1, *leaf.shape[2:]), batch.examples)
    together = batch_moments()(
        before.params, before.model_state, examples, batch.mask.reshape(1, -1)
    )
    first = "norm0"  # later layers see activations that were normalised client by client
    chex.assert_trees_all_close(
        after.model_state[first],
        batch_statistics.from_moments(together)[first],
        rtol=1e-3,
        atol=1e-5,
    )


def test_the_losses_depend_on_running_statistics_only_where_the_policy_says_so():
    def scalars(policy, shift):
        built, _, state, step = program(policy)
        moved = jax.tree.map(lambda leaf: leaf + shift, state.model_state)
        _, _, (record,) = step(state._replace(model_state=moved), built.data, built.run_key)
        return record.messages

    for policy in POLICIES:
        same = bool(jnp.all(scalars(policy, 0.0) == scalars(policy, 0.5)))
        assert same == (policy in ("batch", "batch_sync")), policy


def test_momentum_statistics_equal_those_of_the_model_s_own_training_pass():
    built, _, (params, state, *_), _ = program("frozen")
    batch = tiny.gather(built, [5])
    one = trees.squeeze(batch)
    logits = jax.jit(lambda *arguments: built.task.logits(*arguments, True))
    _, trained = logits(params, state, one.examples, one.mask)
    moments = batch_moments()(params, state, batch.examples, batch.mask)
    moved = batch_statistics.move(state, batch_statistics.from_moments(moments))
    chex.assert_trees_all_close(moved, trained, rtol=1e-4, atol=1e-6)


def test_microbatches_pool_their_moments():
    built, _, (params, state, *_), _ = program("frozen")
    batch = tiny.gather(built, [5])
    whole = batch_moments()(params, state, batch.examples, batch.mask)
    thirds = jax.tree.map(
        lambda leaf: leaf.reshape(3, 6, *leaf.shape[2:]), (batch.examples, batch.mask)
    )
    parts = batch_moments()(params, state, *thirds)
    assert batch.mask.shape[1] == 18
    chex.assert_trees_all_close(parts["norm0"], whole["norm0"], rtol=1e-4, atol=1e-6)


def test_first_order_warm_up_averages_the_clients_statistics():
    overrides = BATCH_NORM | {"warmup__cohort_size": 2, "data__high_fraction": 0.1}
    built = tiny.build("fedavg", **overrides)
    (phase,) = built.phases
    before = tiny.start(built, phase)
    after, _, (record,) = jax.jit(tiny.algorithm(built, phase).round)(
        before, built.data, built.run_key
    )
    update = jax.jit(tiny.only_strategy(phase).client_update)
    results = [
        update(before, trees.squeeze(tiny.gather(built, [i])), built.run_key)
        for i in record.cohort.client_ids
    ]
    expected = mean_of([result.model_state for result in results])
    chex.assert_trees_all_close(after.model_state, expected, rtol=1e-4, atol=1e-5)
    first = after.model_state["norm0"]
    assert not np.allclose(first["mean"], 0)
