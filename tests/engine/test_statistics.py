"""BatchNorm's running statistics under every policy of the zeroth-order phase."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from zo_fl.engine import statistics, trees
from zo_fl.host.costs import phase_cost

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
    before = before._replace(model_state=jax.tree.map(lambda s: s + 0.25, before.model_state))
    after, _, (record,) = step(before, built.data, built.run_key)
    return built, phase, before, after, record


@functools.cache
def batch_moments():
    """Returns ``statistics.batch_moments`` of the model, jitted."""
    return jax.jit(functools.partial(statistics.batch_moments, program("frozen")[0].task))


def client_moments(built, before, record):
    """Exact moments of each client's activations at the unperturbed weights."""
    batches = [tiny.gather(built, [client]) for client in record.cohort.client_ids]
    model = before.params, before.model_state
    return [batch_moments()(*model, batch.examples, batch.mask) for batch in batches]


def mean_of(trees_):
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trees_)


@pytest.mark.parametrize("policy", statistics.POLICIES)
def test_statistics_stay_to_the_bit_or_travel_and_are_billed(policy):
    built, phase, before, after, _ = one_round(policy)
    cost = phase_cost(phase, before.params, before.model_state, built.data)
    travels = policy in ("batch_sync", "recalibrate")
    size = trees.num_bytes(before.model_state) if travels else 0
    assert trees.num_bytes(before.model_state) == 4 * 2 * (16 + 32 + 64)
    assert cost.uplink == 3 * (12 + size) and cost.downlink == 40 * (3 * 12 + size)
    assert phase.groups[0].forward_passes == 3 * 18 * (2 * 3 + travels)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before.model_state, after.model_state)
    assert set(jax.tree.leaves(moved)) == {travels}


def test_batch_sync_moves_statistics_by_one_unperturbed_pass_averaged_over_clients():
    built, _, before, after, record = one_round("batch_sync")
    moved = [
        statistics.move(before.model_state, statistics.from_moments(moments))
        for moments in client_moments(built, before, record)
    ]
    chex.assert_trees_all_close(after.model_state, mean_of(moved), rtol=1e-4, atol=1e-6)


def test_recalibrate_pools_the_moments_that_clients_have_by_themselves_exact_in_the_first_layer():
    built, _, before, after, record = one_round("recalibrate")
    pooled = statistics.from_moments(mean_of(client_moments(built, before, record)))
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
        statistics.from_moments(together)[first],
        rtol=1e-3,
        atol=1e-5,
    )


def test_the_losses_depend_on_running_statistics_only_where_the_policy_says_so():
    def scalars(policy, shift):
        built, _, state, step = program(policy)
        moved = jax.tree.map(lambda leaf: leaf + shift, state.model_state)
        _, _, (record,) = step(state._replace(model_state=moved), built.data, built.run_key)
        return record.messages

    for policy in statistics.POLICIES:
        same = bool(jnp.all(scalars(policy, 0.0) == scalars(policy, 0.5)))
        assert same == (policy in ("batch", "batch_sync")), policy


def test_momentum_statistics_equal_those_of_the_model_s_own_training_pass():
    built, _, (params, state, *_), _ = program("frozen")
    batch = tiny.gather(built, [5])
    one = trees.squeeze(batch)
    logits = jax.jit(lambda *arguments: built.task.logits(*arguments, True))
    _, trained = logits(params, state, one.examples, one.mask)
    moments = batch_moments()(params, state, batch.examples, batch.mask)
    moved = statistics.move(state, statistics.from_moments(moments))
    chex.assert_trees_all_close(moved, trained, rtol=1e-4, atol=1e-6)


def test_first_order_rounds_average_the_clients_statistics():
    overrides = BATCH_NORM | {"warmup__cohort_size": 2, "data__high_fraction": 0.1}
    built = tiny.build("fedavg", **overrides)
    phase, (before, after), _, (((cohort, *_),),) = tiny.run(built)
    update = jax.jit(tiny.only_client(phase).update)
    results = [
        update(before, tiny.batch_of(built, client), tiny.own_keys(built, client))
        for client in cohort.client_ids
    ]
    expected = mean_of([result.model_state for result in results])
    chex.assert_trees_all_close(after.model_state, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(after.model_state["norm0"]["mean"], 0)
