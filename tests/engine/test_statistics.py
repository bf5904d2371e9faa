"""BatchNorm's running statistics under every policy of the zeroth-order phase."""

import functools

import chex
import jax
import numpy as np
import pytest

from tests import tiny
from zo_fl.engine import statistics, trees
from zo_fl.host.costs import phase_cost

pytestmark = pytest.mark.slow

BATCH_NORM = dict(model__name="cnn", model__norm="batch", model__width=0.25)
BATCH_NORM |= dict(data__num_clients=40, zo__cohort_size=3, zo__lr=1e-3)


@functools.cache
def program(policy):
    """The experiment of a policy, a first state, and the jitted round."""
    built = tiny.build("zo", **BATCH_NORM, zo__bn_policy=policy)
    (phase,) = built.phases
    return built, tiny.start(built, phase), jax.jit(tiny.algorithm(built, phase).round)


@functools.cache
def one_round(policy):
    built, before, step = program(policy)
    # Statistics as after some training, unlike any batch's.
    before = before._replace(model_state=jax.tree.map(lambda s: s + 0.25, before.model_state))
    after, _, (record,) = step(before, built.data, built.run_key)
    return built, before, after, record


@functools.cache
def of_batches():
    """Returns the statistics of all examples of batches by the model, jitted."""
    task = program("batch_sync")[0].task
    return jax.jit(lambda *given: statistics.pooled(*statistics.batch_statistics(task, *given)))


def of_clients(built, before, record):
    """Statistics of each client's activations at the unperturbed weights."""
    batches = [tiny.gather(built, [client]) for client in record.cohort.client_ids]
    return [of_batches()(before, batch.examples, batch.mask) for batch in batches]


def moved(built, before, record):
    """What statistics become by one unperturbed pass of each client, the mean over clients."""
    found = of_clients(built, before, record)
    return mean_of(statistics.move(before.model_state, own) for own in found)


def mean_of(trees_):
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trees_)


def test_statistics_that_travel_are_billed_and_others_stay():
    _, before, _ = program("batch_sync")
    whole = trees.num_bytes(before.model_state)
    assert whole == 4 * 2 * (4 + 8 + 16)
    for policy in statistics.POLICIES:
        built = tiny.build("zo", **BATCH_NORM, zo__bn_policy=policy)
        (phase,) = built.phases
        cost = phase_cost(phase, before.params, before.model_state, built.data)
        travels = policy in ("batch_sync", "recalibrate")
        size = whole if travels else 0
        assert cost.uplink == 3 * (12 + size) and cost.downlink == 40 * (3 * 12 + size)
        assert phase.groups[0].forward_passes == 3 * 18 * (2 * 3 + travels)
        other = jax.tree.map(np.copy, before.model_state)
        of_server = phase.server.statistics(before.model_state, other)
        assert (of_server is before.model_state) == (not travels)


def test_batch_sync_moves_statistics_by_one_unperturbed_pass_averaged_over_clients():
    built, before, after, record = one_round("batch_sync")
    expected = moved(built, before, record)
    chex.assert_trees_all_close(after.model_state, expected, rtol=1e-4, atol=1e-6)


def test_recalibrate_pools_the_moments_that_clients_have_by_themselves_exact_in_the_first_layer():
    built, before, after, record = one_round("recalibrate")
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *of_clients(built, before, record))
    sizes = tiny.gather(built, record.cohort.client_ids).mask.sum(1)
    pooled = statistics.pooled(stacked, sizes)
    chex.assert_trees_all_close(after.model_state, pooled, rtol=1e-3, atol=1e-5)
    # Pooled means of all clients' examples in one batch: the law of total variance holds.
    batch = tiny.gather(built, record.cohort.client_ids)
    examples = jax.tree.map(lambda leaf: leaf.reshape(1, -1, *leaf.shape[2:]), batch.examples)
    together = of_batches()(before, examples, batch.mask.reshape(1, -1))
    first = "norm0"  # later layers see activations that were normalised client by client
    chex.assert_trees_all_close(
        after.model_state[first],
        together[first],
        rtol=1e-3,
        atol=1e-5,
    )


def test_the_losses_depend_on_running_statistics_only_where_the_policy_says_so():
    for policy, depends in (("batch_sync", False), ("recalibrate", True)):
        built, first, step = program(policy)
        _, _, (record,) = step(first, built.data, built.run_key)
        *_, of_others = one_round(policy)
        assert bool((record.messages != of_others.messages).any()) == depends, policy


def test_momentum_statistics_equal_those_of_the_model_s_own_training_pass():
    built, start, _ = program("batch_sync")
    params, state, *_ = start
    batch = tiny.gather(built, [5])
    one = trees.squeeze(batch)
    logits = jax.jit(lambda *arguments: built.task.logits(*arguments, True))
    _, trained = logits(params, state, one.examples, one.mask)
    found = statistics.move(state, of_batches()(start, batch.examples, batch.mask))
    chex.assert_trees_all_close(found, trained, rtol=1e-4, atol=1e-6)


def test_first_order_rounds_average_the_clients_statistics():
    overrides = BATCH_NORM | {"warmup__cohort_size": 2, "data__high_fraction": 0.1}
    built = tiny.build("fedavg", **overrides)
    _, (before, after), _, ((record,),) = tiny.run(built)  # one local step
    expected = moved(built, before, record)
    chex.assert_trees_all_close(after.model_state, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(after.model_state["norm0"]["mean"], 0)


def test_variances_far_from_zero_are_pooled_as_in_float64():
    rng = np.random.default_rng(0)
    x = rng.normal(rng.uniform(-1, 1, 5), 1.0, (4, 30, 5)) + 1000  # clients, examples, channels
    own = {"mean": np.float32(x.mean(1)), "var": np.float32(x.var(1))}
    pooled = statistics.pooled({"norm": own}, np.full(4, 30.0, np.float32))["norm"]
    running = {"norm": {"mean": np.full(5, 999, np.float32), "var": np.ones(5, np.float32)}}
    clients = [jax.tree.map(lambda leaf, j=j: leaf[j], {"norm": own}) for j in range(4)]
    sent = mean_of([statistics.around(running, client) for client in clients])
    for found in (pooled, statistics.from_around(running, sent)["norm"]):
        np.testing.assert_allclose(found["mean"], x.mean((0, 1)), rtol=1e-6)
        np.testing.assert_allclose(found["var"], x.var((0, 1)), rtol=2e-4)
