"""Aggregations that set parameters instead of descending, from sums instead of means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from zo_fl import api as train
from zo_fl.engine.phase import Participation, Phase, make_group
from zo_fl.engine.strategy import Aggregation, ClientStrategy
from zo_fl.engine.types import ClientResult
from zo_fl.methods import ALGORITHMS

pytestmark = pytest.mark.slow


def class_means(problem, *, warmup):
    """A head whose columns are the means of the classes' features, from sums over all clients."""
    task = problem.task

    def client_update(state, batch, run_key):
        del run_key
        features = task.features(state.params, state.model_state, batch.examples, batch.mask)
        held = jax.nn.one_hot(task.labels(batch.examples), task.num_classes) * batch.mask[:, None]
        size = jnp.sum(batch.mask).astype(jnp.float32)
        return ClientResult((features.T @ held, held.sum(0)), size, {}, {})

    def assign(sums, state, run_key):
        del run_key
        features, counts = sums
        means = features / jnp.maximum(counts, 1)[None]
        head = {"kernel": means, "bias": -0.5 * jnp.sum(means**2, axis=0)}
        return state.params | {task.head: head}, state.strategy_state

    group = make_group(
        problem, ClientStrategy(client_update), lambda clients, n: clients * n, Participation()
    )
    aggregation = Aggregation(reduce="sum", assign=assign)
    return (Phase("means", warmup["num_rounds"], (group,), aggregation, None),)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(ALGORITHMS, "class_means", class_means)


def expected(built, state, clients=range(8)):
    """The same means with all examples in one place."""
    data = built.federation.clients
    rows = np.concatenate([data.client_indices[j, : data.client_sizes[j]] for j in clients])
    examples = {name: leaf[rows] for name, leaf in data.examples.items()}
    features = built.task.features(state.params, {}, examples, np.ones(len(rows), bool))
    features = np.asarray(features, np.float64)
    return np.stack([features[examples["label"] == k].mean(0) for k in range(10)], axis=1)


@pytest.mark.parametrize("overrides", ({}, {"run__clients_per_vmap": 3}, {"run__num_devices": 4}))
def test_the_head_is_that_of_pooled_data_however_clients_are_laid_out(overrides):
    built = tiny.build("class_means", **overrides)
    (phase,) = built.phases
    state = tiny.start(built, phase)
    after, metrics, _ = jax.jit(tiny.algorithm(built, phase).round)(
        state, built.data, built.run_key
    )
    np.testing.assert_allclose(
        after.params["head"]["kernel"], expected(built, state), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(
        after.params["hidden"]["kernel"], state.params["hidden"]["kernel"]
    )
    assert int(after.round_idx) == 1 and after.opt_state == () and "loss" not in metrics


def test_a_client_that_drops_out_is_left_out_of_the_sums():
    built = tiny.build("class_means")
    (phase,) = built.phases
    (group,) = phase.groups
    update = group.strategy.client_update

    def broken(state, batch, run_key):
        result = update(state, batch, run_key)
        bad = batch.client_id == 2
        message = jax.tree.map(lambda leaf: jnp.where(bad, jnp.nan, leaf), result.message)
        return result._replace(message=message, weight=jnp.where(bad, 0.0, result.weight))

    strategy = group.strategy._replace(client_update=broken)
    phase = phase._replace(groups=(group._replace(strategy=strategy),))
    state = tiny.start(built, phase)
    after, *_ = jax.jit(tiny.algorithm(built, phase).round)(state, built.data, built.run_key)
    others = expected(built, state, [0, 1, 3, 4, 5, 6, 7])
    np.testing.assert_allclose(after.params["head"]["kernel"], others, rtol=1e-5, atol=1e-6)


def test_it_runs_after_a_warm_up_and_before_zeroth_order_rounds_without_a_loss(tmp_path):
    config = tiny.config("fedavg+class_means+zo", data__alpha=100.0)
    rows = []
    summary = train.run(config, tmp_path, on_round=rows.append, quiet=True)
    assert summary["rounds"] == 6 and summary["final_accuracy"] > 0.3
    assert [("train_loss" in row) for row in rows] == [True, True, False, False, True, True]
