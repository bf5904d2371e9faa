"""First-order local training against plain loops."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import tiny
from zo_fl.engine import cohorts, keys, trees
from zo_fl.engine.errors import ConfigError

pytestmark = pytest.mark.slow


def test_local_sgd_is_the_plain_loop_over_shuffled_batches():
    built = tiny.build(
        "fedavg",
        warmup__local_epochs=2,
        warmup__lr=0.1,
        warmup__momentum=0.9,
        warmup__weight_decay=1e-2,
    )
    (phase,) = built.phases
    state = tiny.start(built, phase)
    params = state.params
    batch = trees.squeeze(tiny.gather(built, [3]))
    result = jax.jit(tiny.only_strategy(phase).client_update)(state, batch, built.run_key)

    @jax.jit
    def loss_and_gradient(p, examples):
        everyone = jnp.ones(len(examples["label"]), bool)
        loss = lambda p: built.task.losses(p, {}, examples, everyone, True)[0].mean()  # noqa: E731
        return jax.value_and_grad(loss)(p)

    key = keys.stream(keys.client_key(keys.round_key(built.run_key, 0), 3), "batches")
    after, velocity, losses = params, jax.tree.map(jnp.zeros_like, params), []
    for epoch_key in jax.random.split(key, 2):
        indices, masks = cohorts.epoch_order(epoch_key, batch.mask, 40)
        for rows, mask in zip(indices, masks, strict=True):
            real = np.asarray(rows)[np.asarray(mask)]
            examples = {name: leaf[real] for name, leaf in batch.examples.items()}
            value, gradient = loss_and_gradient(after, examples)
            losses += [float(value)] * len(real)
            velocity = jax.tree.map(
                lambda v, g, p: 0.9 * v + g + 1e-2 * p, velocity, gradient, after
            )
            after = jax.tree.map(lambda p, v: p - 0.1 * v, after, velocity)
    chex.assert_trees_all_close(result.message, optax.tree.sub(params, after), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(result.metrics["loss"], np.mean(losses), rtol=1e-4)
    assert float(result.weight) == 90


def test_the_round_is_the_weighted_mean_of_the_clients_models():
    built = tiny.build("fedavg")
    (phase,) = built.phases
    before = tiny.start(built, phase)
    after, _, (record,) = jax.jit(tiny.algorithm(built, phase).round)(
        before, built.data, built.run_key
    )
    high = np.flatnonzero(built.federation.clients.client_tiers == 1)
    np.testing.assert_array_equal(record.cohort.client_ids, high)
    models = []
    for client_id in high:
        batch = trees.squeeze(tiny.gather(built, [client_id]))
        delta = tiny.only_strategy(phase).client_update(before, batch, built.run_key).message
        models.append(optax.tree.sub(before.params, delta))
    mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *models)
    chex.assert_trees_all_close(after.params, mean, rtol=1e-4, atol=1e-5)


def test_warm_up_lowers_the_loss():
    built = tiny.build("fedavg", warmup__lr=0.1)
    (phase,) = built.phases
    state, step, losses = tiny.start(built, phase), jax.jit(tiny.algorithm(built, phase).round), []
    for _ in range(4):
        state, metrics, _ = step(state, built.data, built.run_key)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("microbatch", (1, 8))
def test_gradients_added_up_over_microbatches_make_the_same_step(microbatch):
    states = []
    for size in (0, microbatch):
        built = tiny.build("fedavg", warmup__microbatch=size, warmup__momentum=0.9)
        (phase,) = built.phases
        step = jax.jit(tiny.algorithm(built, phase).round)
        states.append(step(tiny.start(built, phase), built.data, built.run_key))
    chex.assert_trees_all_close(states[0][0].params, states[1][0].params, rtol=1e-4, atol=1e-6)
    assert states[0][1]["loss"] == pytest.approx(float(states[1][1]["loss"]), rel=1e-5)


@pytest.mark.parametrize(
    "changes, words",
    (
        ({"warmup__microbatch": 30}, "config.warmup.microbatch=30 does not divide"),
        (
            {"warmup__microbatch": 10, "model__name": "cnn", "model__norm": "batch"},
            "config.warmup.microbatch=10 would change batch statistics",
        ),
    ),
)
def test_microbatches_that_would_change_the_step_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        tiny.build("fedavg", **changes)
