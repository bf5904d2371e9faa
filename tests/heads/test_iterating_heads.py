"""Heads found round by round, conjugate gradients, SGD and scalars, against what they mean."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.heads.problems import (
    after,
    build,
    far,
    high_tier,
    log_softmax,
    one_round,
    rounds,
    run_all,
    seen,
)
from tests.heads.test_sum_heads import assert_pooled
from zo_fl.engine import losses
from zo_fl.engine.fields import ConfigError
from zo_fl.heads import head_zo
from zo_fl.zo import directions

pytestmark = pytest.mark.slow


CG = {"penalty": 0.05, "check_every": "none", "calibrate": False, "shrinkage": 0.01}


@functools.cache
def conjugate_gradients():
    """The method, the state before its iterations, and those after each of them."""
    built = build("ridge_cg", num_rounds=14, **CG)
    *before, iterate = built.phases
    start = after(iterate, run_all(built, before)[-1])
    return built, start, rounds(built, iterate, 14, start)


def test_conjugate_gradients_arrive_at_ridge():
    built, _, states = conjugate_gradients()
    assert_pooled(built, states[-1].params, tolerance=1e-4)


def test_so_they_do_where_features_are_far_from_zero():
    built = build("ridge_cg", num_rounds=14, **CG)
    *before, iterate = built.phases
    start = after(iterate, run_all(built, before, far(built, before[0]))[-1])
    params = rounds(built, iterate, 14, start)[-1].params
    assert_pooled(built, params, tolerance=5e-3)


def few_high(width):
    """The method with two high-resource clients of 90 examples, on 64 features times ``width``."""
    share = {"high_fraction": 0.25}
    return build("ridge_cg", num_rounds=1, data=share, model={"width": width}, **CG)


@pytest.mark.parametrize("width", (1.0, 4.0), ids=("matrix", "rows"))
def test_the_preconditioner_is_the_high_tier_s_covariance_within_classes_and_everyone_s_between(
    width,
):
    built = few_high(width)
    *before, iterate = built.phases
    start = after(iterate, run_all(built, before)[-1])
    known = start.strategy_state
    assert isinstance(known.of_high.rows, tuple) == (width == 1.0)
    h, labels = seen(built, start)
    ours, of_high = seen(built, start, high_tier(built))
    scale, means = np.float64(known.scale), {c: h[labels == c].mean(0) for c in set(labels)}
    inner = np.stack([x - ours[of_high == c].mean(0) for x, c in zip(ours, of_high, strict=True)])
    matrix = inner.T @ inner / len(inner)
    for c, mean in means.items():
        matrix += np.mean(labels == c) * np.outer(mean - h.mean(0), mean - h.mean(0))
    matrix = matrix * np.outer(scale, scale) + 0.06 * np.eye(len(scale))
    right = np.random.default_rng(0).normal(size=(len(scale), 3)).astype(np.float32)
    found = known.of_high.solve(0.06, right)
    np.testing.assert_allclose(found, np.linalg.solve(matrix, right), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        matrix @ np.float64(known.direction), known.residual, rtol=1e-3, atol=1e-5
    )


def test_a_client_that_fell_out_is_in_no_row_and_padding_neither():
    built = few_high(4.0)
    phase = built.phases[0]
    state = tiny.start(built, phase)
    updates, _, weights = tiny.first_updates(built, phase, state)
    alone = jax.tree.map(lambda leaf: np.stack([leaf[0], 0 * leaf[1]]), updates)
    spoilt = jax.tree.map(lambda leaf: np.stack([leaf[0], leaf[1] * np.nan, leaf[0]]), updates)
    (_, expected), (_, found) = (
        tiny.server_step(built, phase, state, phase.server.reducer.middle(*given))
        for given in ((alone, np.float32([90, 90])), (spoilt, np.float32([90, 0, 0])))
    )
    chex.assert_trees_all_equal(found.of_high, expected.of_high)
    assert np.any(found.of_high.rows) and len(weights) == 2


def test_no_rule_reads_rows():
    changes = dict(model__width=4.0, data__high_fraction=0.25, robust__rule="clip")
    with pytest.raises(ConfigError, match="rule='clip' has no meaning where the server needs"):
        tiny.build("ridge_cg", **changes)


def test_clients_are_asked_about_the_latest_head_and_the_best_one_is_kept():
    _, start, (unasked, *_) = conjugate_gradients()
    built = build("ridge_cg", **CG | {"check_every": 3})
    phase = built.phases[-1]
    nothing = np.zeros_like(start.strategy_state.direction)
    params, _ = tiny.server_step(built, phase, start, nothing)
    chex.assert_trees_all_equal(params, start.params)  # until one is kept
    latest, _ = phase.stop.asked(unasked, None)
    chex.assert_trees_all_equal(latest, phase.stop.keep(unasked).params)
    chex.assert_trees_all_close(latest, unasked.params, rtol=1e-6)
    chex.assert_trees_all_equal(phase.stop.sent(unasked), latest["head"])
    assert phase.stop.every == 3 and phase.stop.tiers == "all"


def test_kept_features_change_nothing_but_rounding():
    heads = []
    for cache in (False, True):
        built = build("head_sgd", cache=cache, microbatch=64)
        (phase,) = built.phases
        state = tiny.start(built, phase)
        if cache:
            keep = jax.jit(phase.keeping.compute)
            examples = keep(state.params, state.model_state, built.data.examples)
            assert examples["kept"].dtype == jnp.float16
            built = built._replace(data=built.data._replace(examples=examples))
        heads.append(one_round(built, phase, state).params["head"])
    chex.assert_trees_all_close(*heads, rtol=0.02, atol=2e-3)


@pytest.mark.parametrize(("method", "saved"), (("head_sgd", 3), ("ridge_cg", 4)))
def test_kept_features_take_one_pass_in_all(method, saved):
    """That of ``ridge_cg`` is for its first sums and three iterations."""
    passes = []
    for cache in (False, True):
        phases = build(method, cache=cache, num_rounds=3).phases
        looking = [p for p in phases if p.groups[0].cohort_size == 8]
        passes.append(sum(p.num_rounds * p.groups[0].forward_passes for p in looking))
    assert passes[1] == pytest.approx(passes[0] / saved, rel=0.01)  # blank images apart


def test_head_sgd_is_gradient_descent_on_the_head_written_out():
    built = build("head_sgd", batch_size="all", local_epochs=2, lr=0.3)
    (phase,) = built.phases
    start = tiny.start(built, phase)
    head = jax.tree.map(np.float64, start.params["head"])
    found = one_round(built, phase, start)
    total, deltas = 0, {"kernel": 0.0, "bias": 0.0}
    for client in range(8):
        h, labels = seen(built, start, [client])
        kernel, bias = head["kernel"], head["bias"]
        for _ in range(2):
            error = np.exp(log_softmax(h @ kernel + bias)) - np.eye(10)[labels]
            kernel = kernel - 0.3 * h.T @ error / len(h)
            bias = bias - 0.3 * error.mean(0)
        total += len(h)
        deltas["kernel"] += len(h) * (head["kernel"] - kernel)
        deltas["bias"] += len(h) * (head["bias"] - bias)
    for name, delta in deltas.items():
        expected = head[name] - delta / total
        np.testing.assert_allclose(found.params["head"][name], expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(found.params["hidden"], start.params["hidden"])


@functools.cache
def begun(**fields):
    """The method after the round of its basis: ``(built, phase of scalars, its first state)``."""
    built = build("head_zo", **{"sketch": 4, "fresh": False} | fields)
    basis, main = built.phases
    return built, main, after(main, one_round(built, basis))


def drawn(built, client, round_idx, size=4, count=3):
    """The directions of a client: ``[{"kernel": f32[k, C], "bias": f32[C]}]``."""
    add = directions.create("rademacher", 1.0)
    zeros = {"kernel": jnp.zeros((size, 10)), "bias": jnp.zeros(10)}
    own = tiny.own_keys(built, jnp.int32(client), round_idx)
    return [add(zeros, key, 1.0) for key in head_zo.direction_keys(own, count)]


def of_features(basis, z):
    """A direction on the basis as one of the model's head, written out."""
    kernel = np.asarray(basis.directions, np.float64) @ np.asarray(z["kernel"], np.float64)
    return {"kernel": kernel, "bias": np.asarray(z["bias"]) - np.asarray(basis.origin) @ kernel}


@pytest.mark.parametrize("loss", ("ce", "wsm"))
def test_a_scalar_is_the_derivative_of_the_client_s_loss_along_its_direction(loss):
    built, phase, state = begun()
    client = build("head_zo", sketch=4, fresh=False, loss=loss).phases[1].groups[0].client
    batch = tiny.batch_of(built, 5)
    found = jax.jit(client.update)(state, batch, tiny.own_keys(built, jnp.int32(5), 1))
    loss_of = losses.of_client(built.task, loss, batch)

    def mean_loss(head):
        params = state.params | {"head": head}
        each, _ = loss_of(params, state.model_state, batch.examples, batch.mask, False)
        return jnp.sum(jnp.where(batch.mask, each, 0)) / jnp.sum(batch.mask)

    value, gradient = jax.jit(jax.value_and_grad(mean_loss))(state.params["head"])
    np.testing.assert_allclose(found.metrics["loss"], value, rtol=1e-5)
    for scalar, z in zip(found.message, drawn(built, 5, 1), strict=True):
        moved = of_features(state.strategy_state, z)
        slope = sum(np.sum(np.float64(gradient[name]) * moved[name]) for name in moved)
        np.testing.assert_allclose(scalar, slope, rtol=2e-4, atol=1e-6)


def test_a_round_moves_the_head_and_nothing_else_along_the_directions_of_all_clients():
    built, phase, state = begun()
    step = jax.jit(tiny.algorithm(built, phase).round)
    found, _, (sent,) = step(state, built.data, built.run_key)
    head = {name: np.float64(leaf) for name, leaf in state.params["head"].items()}
    weights = np.asarray(sent.weights) / np.sum(sent.weights)
    for client, scalars, weight in zip(sent.cohort.client_ids, sent.messages, weights, strict=True):
        for scalar, z in zip(scalars, drawn(built, client, 1), strict=True):
            moved = of_features(state.strategy_state, z)
            head = {n: head[n] - 0.3 * weight * float(scalar) / 3 * moved[n] for n in head}
    for name, leaf in head.items():
        np.testing.assert_allclose(found.params["head"][name], leaf, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(found.params["hidden"], state.params["hidden"])


def test_features_on_the_basis_have_about_equal_variances():
    built, _, state = begun()
    mean, along = state.strategy_state
    white = (seen(built, state, high_tier(built))[0] - np.asarray(mean)) @ np.asarray(along)
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-3)
    assert 0.2 < white.var(0).min() <= white.var(0).max() <= 1.0


def test_a_fresh_head_is_zeros_and_a_sketch_of_0_is_all_directions():
    built = build("head_zo", sketch="all")
    state = one_round(built, built.phases[0])
    assert not np.any(state.params["head"]["kernel"]) and not np.any(state.params["head"]["bias"])
    assert state.strategy_state.directions.shape == (64, 64)
