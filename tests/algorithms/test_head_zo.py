"""Scalars for the last layer along whitened directions, against what they mean."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zo_fl
from experiments.benchmarking import client_step
from tests import tiny
from zo_fl import api as train
from zo_fl import config as configs
from zo_fl.engine import losses as client_losses
from zo_fl.engine import trees
from zo_fl.engine.errors import ConfigError
from zo_fl.host.traffic import first_client, phase_traffic
from zo_fl.zo import directions
from zo_fl.zo.rebuilding import directions_root

pytestmark = pytest.mark.slow


def begun(**fields):
    """A problem after the round of its basis: ``(built, phase of scalars, its first state)``."""
    fields = {"num_directions": 3, "fresh": False} | fields
    built = tiny.build("head_zo", **{f"head_zo__{name}": v for name, v in fields.items()})
    start, main = built.phases
    before = tiny.start(built, start)
    step = jax.jit(tiny.algorithm(built, start).round)
    after = step(before, built.data_of(start), built.run_key)[0]
    first = main.init(after.params, after.model_state, 1)
    return built, main, first._replace(strategy_state=after.strategy_state)


def drawn(built, state, client, size, count=3):
    """The directions of a client: ``[{"kernel": f32[k, C], "bias": f32[C]}]``."""
    add = directions.create("rademacher", 1.0)
    zeros = {"kernel": jnp.zeros((size, 10)), "bias": jnp.zeros(10)}
    root = directions_root(state, built.run_key, jnp.int32(client))
    return [add(zeros, jax.random.fold_in(root, m), 1.0) for m in range(count)]


def of_features(basis, z):
    """What a direction on the basis is for the model's head, written out."""
    kernel = np.asarray(basis.directions, np.float64) @ np.asarray(z["kernel"], np.float64)
    return {"kernel": kernel, "bias": np.asarray(z["bias"]) - np.asarray(basis.mean) @ kernel}


@pytest.mark.parametrize("loss", ("ce", "wsm", "masked"))
def test_a_scalar_is_the_derivative_of_the_client_s_loss_along_its_direction(loss):
    built, phase, state = begun(loss=loss, microbatch=3)
    for client in (0, 5):
        batch = trees.squeeze(tiny.gather(built, [client]))
        strategy = tiny.only_strategy(phase)
        found = jax.jit(strategy.client_update)(state, batch, built.run_key)
        losses = client_losses.of_client(built.task, loss, batch)

        def mean_loss(head, losses=losses, batch=batch):
            params = state.params | {built.task.head: head}
            each, _ = losses(params, state.model_state, batch.examples, batch.mask, False)
            return jnp.sum(jnp.where(batch.mask, each, 0)) / jnp.sum(batch.mask)

        head = state.params[built.task.head]
        for m, z in enumerate(drawn(built, state, client, 4)):
            moved = jax.tree.map(jnp.float32, of_features(state.strategy_state.basis, z))
            value, slope = jax.jvp(mean_loss, (head,), (moved,))
            np.testing.assert_allclose(found.message[m], slope, rtol=2e-4, atol=1e-6)
            np.testing.assert_allclose(found.metrics["loss"], value, rtol=1e-5)


def test_a_round_moves_the_head_along_the_directions_of_all_clients():
    built, phase, state = begun(lr=0.5)
    after, _, (sent,) = jax.jit(tiny.algorithm(built, phase).round)(
        state, built.data_of(phase), built.run_key
    )
    head = {n: np.float64(leaf) for n, leaf in state.params[built.task.head].items()}
    weights = np.asarray(sent.weights) / np.sum(sent.weights)
    for client, scalars, weight in zip(sent.cohort.client_ids, sent.messages, weights, strict=True):
        for scalar, z in zip(scalars, drawn(built, state, client, 4), strict=True):
            moved = of_features(state.strategy_state.basis, z)
            head = {n: head[n] - 0.5 * weight * float(scalar) / 3 * moved[n] for n in head}
    for name, leaf in head.items():
        np.testing.assert_allclose(after.params[built.task.head][name], leaf, rtol=1e-5, atol=1e-6)
    rest = {name: leaf for name, leaf in state.params.items() if name != built.task.head}
    assert all(
        jnp.array_equal(a, b)
        for a, b in zip(
            *map(jax.tree.leaves, (rest, {n: after.params[n] for n in rest})), strict=True
        )
    )


def test_features_on_the_basis_have_about_equal_variances():
    built, _, state = begun()
    high = np.flatnonzero(np.asarray(built.federation.clients.client_tiers) == 1)
    data = built.federation.clients
    rows = np.concatenate([data.client_indices[j, : data.client_sizes[j]] for j in high])
    examples = {name: leaf[rows] for name, leaf in data.examples.items()}
    seen = built.task.features(state.params, state.model_state, examples, np.ones(len(rows), bool))
    mean, along = state.strategy_state.basis
    white = (np.asarray(seen) - np.asarray(mean)) @ np.asarray(along)
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-3)
    assert 0.2 < white.var(0).min() <= white.var(0).max() <= 1.0


def test_it_learns_from_a_fresh_head_and_sends_four_bytes_a_scalar(tmp_path):
    changes = {"num_rounds": 30, "num_directions": 12, "sketch": 0, "lr": 0.5, "cache": True}
    config = tiny.config("head_zo", **{f"head_zo__{name}": v for name, v in changes.items()})
    summary = train.run(config, tmp_path / "run", quiet=True)
    assert summary["final_accuracy"] > 0.6
    built = tiny.build("head_zo", head_zo__num_directions=12, head_zo__cache=True)
    _, main = built.phases
    traffic = phase_traffic(main, *jax.eval_shape(built.task.init, built.run_key), built.data)
    assert traffic.uplink == 8 * 12 * 4
    params, _ = jax.eval_shape(built.task.init, built.run_key)
    dim = params[built.task.head]["kernel"].shape[0]
    # Once: the model, and mean and directions of the basis.
    assert traffic.at_start == 8 * (trees.num_bytes(params) + 4 * (dim + dim * 4))


def test_a_sketch_that_is_too_large_is_refused():
    with pytest.raises(ConfigError, match="head_zo.sketch=1000 is more than the model's"):
        tiny.build("head_zo", head_zo__sketch=1000)


def test_the_best_config_is_the_paper_s_method_where_its_part_is_switched_off(tmp_path):
    printed = configs.load("cifar10_10_90")
    best = configs.load("cifar10_10_90_best")
    best.algorithm = printed.algorithm
    assert configs.identity(configs.resolve(best)) == configs.identity(configs.resolve(printed))
    # And by the number of its rounds.
    without = tiny.config("fedavg+head_zo+zo", head_zo__num_rounds=0)
    models = []
    for name, config in (("without", without), ("printed", tiny.config("zowarmup"))):
        train.run(config, tmp_path / name, quiet=True)
        models.append(zo_fl.load(tmp_path / name).params)
    chex.assert_trees_all_equal(*models)


def test_the_memory_of_a_client_that_keeps_features_includes_making_them():
    built = tiny.build("head_zo", head_zo__cache=True)
    phase = built.phases[-1]
    shapes = jax.eval_shape(built.task.init, built.run_key)
    step_of = phase, phase.groups[0], *shapes, built.data, built.engine
    memory = client_step.step_memory(client_step.compile_step(*step_of), *step_of)
    looked_at = shapes[0]["hidden"], jax.eval_shape(first_client, built.data).examples
    assert memory.arguments >= trees.num_bytes(looked_at)
