"""Heads from everyone's sums: those of pooled data, whoever holds what, joins, or drops out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.heads.problems import (
    after,
    build,
    centered,
    far,
    high_tier,
    log_softmax,
    logits,
    one_round,
    run_all,
    seen,
)
from zo_fl.engine import trees
from zo_fl.engine.algorithm import Cohort, ServerState
from zo_fl.engine.fields import ConfigError
from zo_fl.heads import closed_form, features, sums
from zo_fl.heads.gaussian_head import SHRINKAGES

pytestmark = pytest.mark.slow

ONE = {"penalties": (0.05,), "calibrate": False}


def pooled_ridge(h, labels, penalty):
    """NumPy, float64: a head by ridge regression on standardized features."""
    mean, std = h.mean(0), h.std(0)
    std[std < 1e-9] = np.inf
    x, y = (h - mean) / std, np.eye(10)[labels]
    weights = np.linalg.solve(
        x.T @ x / len(x) + penalty * np.eye(x.shape[1]), x.T @ (y - y.mean(0)) / len(x)
    )
    kernel = weights / std[:, None]
    return {"kernel": kernel, "bias": y.mean(0) - mean @ kernel}


def assert_pooled(built, params, clients=range(8), penalty=0.05, tolerance=1e-5):
    """The head is the ridge regression of these clients' pooled examples."""
    state = ServerState(params, {}, (), (), jnp.int32(0))
    expected = pooled_ridge(*seen(built, state, clients), penalty)
    h, _ = seen(built, state, clients)
    found = logits(params["head"], h)
    np.testing.assert_allclose(found, logits(expected, h), rtol=0, atol=tolerance)


def accuracy(built, state):
    h, labels = seen(built, state)
    return (logits(state.params["head"], h).argmax(1) == labels).mean()


def summing(built):
    """The phase of sums or means."""
    (phase,) = (p for p in built.phases if p.groups[0].client.sent_bytes)
    return phase


@functools.cache
def discriminants():
    """``gaussian_head``, and the states after its four phases."""
    built = build("gaussian_head")
    return built, run_all(built)


def test_ridge_of_everyone_s_sums_is_that_of_pooled_data():
    built = build("ridge", **ONE, data={"alpha": 0.1, "val_fraction": 0.0}, microbatch=7)
    state = one_round(built, *built.phases)
    assert_pooled(built, state.params)
    assert state.strategy_state.sums.class_counts.sum() == len(seen(built, state)[1])


def test_who_drops_out_joins_late_or_is_forgotten_is_just_not_in_the_data():
    built = build("ridge", **ONE, num_rounds=3)
    (phase,) = built.phases
    (group,) = phase.groups

    @jax.jit
    def step(state, client_ids):
        drawn = Cohort(client_ids, jnp.ones(len(client_ids), bool))
        groups = (group._replace(sample_cohort=lambda key: drawn),)
        algorithm = tiny.algorithm(built, phase._replace(groups=groups))
        return algorithm.round(state, built.data, built.run_key)[0]

    state = step(tiny.start(built, phase), jnp.array([0, 2, 3, 5], jnp.int32))
    assert_pooled(built, state.params, [0, 2, 3, 5])
    # A client that is drawn again is not counted again.
    state = step(state, jnp.array([1, 3, 5, 7], jnp.int32))
    joined = [0, 1, 2, 3, 5, 7]
    np.testing.assert_array_equal(np.flatnonzero(state.strategy_state.joined), joined)
    assert_pooled(built, state.params, joined)
    # Client 3 asks to be forgotten: its sums, which it can compute again, are subtracted.
    fresh = state._replace(strategy_state=tiny.start(built, phase).strategy_state)
    own = tiny.own_keys(built, jnp.int32(3))
    message = jax.jit(group.client.update)(fresh, tiny.batch_of(built, 3), own).message
    own_sums = group.client.decode(message, fresh, own)
    rest = jax.tree.map(jnp.subtract, state.strategy_state.sums, own_sums)
    heads = jax.jit(closed_form.ridge)(rest, jnp.float32([0.05]))
    extractor = features.Extractor(built.task, 64, microbatch=0, sketch=0)
    blank = features.around_blank(extractor, state)
    head = closed_form.unfold(blank, heads).at(0)
    joined.remove(3)
    assert_pooled(built, state.params | {"head": head}, joined, tolerance=3e-5)


@pytest.mark.parametrize("method", ("ridge", "ridge_cg"))
def test_a_client_with_features_that_are_not_finite_drops_out(method):
    built = build(method, encoding="int8")  # whose whole numbers are finite
    client, state = summing(built).groups[0].client, tiny.start(built, summing(built))
    bad = jax.tree.map(lambda leaf: jnp.nan * leaf, state.params["hidden"])
    update = jax.jit(client.update)
    given = tiny.batch_of(built, 2), tiny.own_keys(built, jnp.int32(2))
    broken = state._replace(params=state.params | {"hidden": bad})
    assert update(broken, *given).weight == 0 < update(state, *given).weight


def test_the_penalty_and_the_temperature_are_those_that_validation_examples_say():
    built = build("ridge", penalties=(1e-4, 0.1, 3.0, 100.0))
    summed, chosen, calibrated = run_all(built)
    h, labels = seen(built, summed, data=built.federation.validation)
    heads = summed.strategy_state.heads
    found = [logits(heads.at(i), h) for i in range(4)]
    best = int(np.argmax([(one.argmax(1) == labels).sum() for one in found]))
    np.testing.assert_array_equal(chosen.params["head"]["kernel"], heads.kernel[best])
    ratio = np.asarray(calibrated.params["head"]["kernel"] / chosen.params["head"]["kernel"])
    losses = {
        temperature: -log_softmax(temperature * found[best])[np.arange(len(labels)), labels].mean()
        for temperature in 2.0 ** np.arange(-3, 6.5, 0.5)
    }
    assert float(np.median(ratio)) == pytest.approx(min(losses, key=losses.get), rel=1e-5)
    # A head that could not be solved for gets nothing right.
    broken = heads._replace(kernel=heads.kernel.at[best].set(jnp.nan))
    known = summed.strategy_state._replace(heads=broken)
    counts = jax.jit(built.phases[1].groups[0].client.update)(
        summed._replace(strategy_state=known),
        tiny.batch_of(built, 0),
        tiny.own_keys(built, jnp.int32(0)),
    ).message
    assert counts[best] == 0 < counts.sum()


def test_class_means_give_the_discriminant_of_pooled_data_with_the_high_tier_s_covariance():
    built, (_, state, *_) = discriminants()
    assert_discriminant(built, state)


def test_features_far_from_zero_give_the_heads_that_float64_gives():
    built = build("ridge", **ONE)
    (phase,) = built.phases
    assert_pooled(built, one_round(built, phase, far(built, phase)).params, tolerance=5e-3)
    built = build("gaussian_head")
    _, state, *_ = run_all(built, built.phases[:2], far(built, built.phases[0]))
    assert_discriminant(built, state)


def assert_discriminant(built, state):
    h, labels = seen(built, state)
    ours, of_high = seen(built, state, high_tier(built))
    means = np.stack([h[labels == k].mean(0) for k in range(10)])
    residuals = ours - np.stack([ours[of_high == k].mean(0) for k in range(10)])[of_high]
    s = residuals.T @ residuals / len(residuals)
    s += SHRINKAGES[3] * np.trace(s) / len(s) * np.eye(len(s))  # the middle one
    solved = np.linalg.solve(s, means.T)
    expected = h @ solved - np.einsum("kd,dk->k", means, solved) / 2
    expected += np.log(np.bincount(labels, minlength=10) / len(labels))
    found = centered(logits(state.params["head"], h))
    np.testing.assert_allclose(found, centered(expected), atol=2e-3 * np.abs(expected).max())


def test_phases_after_the_first_go_on_with_the_state_before_and_the_first_does_not():
    built, states = discriminants()
    for phase, state in zip(built.phases[1:], states[:-1], strict=True):
        assert after(phase, state).strategy_state is state.strategy_state
    again = after(built.phases[0], states[-1])
    assert not np.any(again.strategy_state.joined)
    assert [phase.evaluated is None for phase in built.phases] == [True, True, True, False]
    assert built.phases[-1].name == "gaussian_head"


@pytest.mark.parametrize("method, encoding", (("ridge", "int8"), ("gaussian_head", "int4")))
def test_the_bill_is_the_bytes_of_the_message_without_classes_that_are_not_held(method, encoding):
    built = build(method, data={"alpha": 0.1}, encoding=encoding)
    client, state = summing(built).groups[0].client, tiny.start(built, summing(built))
    batch = tiny.batch_of(built, 3)
    held = np.bincount(batch.examples["label"], batch.mask, 10) > 0

    def sent(batch):
        message = client.update(state, batch, tiny.own_keys(built, jnp.int32(3))).message
        if method == "ridge":
            leaves = [message.gram, message.class_sums[:, held]]
        else:
            leaves = [leaf[held] for leaf in jax.tree.leaves(message.class_sums)]
        return leaves, message.class_counts[held]

    shapes = jax.eval_shape(sent, batch)
    assert int(client.sent_bytes(batch)) == trees.num_bytes(shapes) + 2  # a bit a class
    assert 0 < held.sum() < 10


@pytest.mark.parametrize("method", ("ridge", "gaussian_head"))
def test_a_sketch_sends_less_and_still_learns(method):
    whole, built = build(method), build(method, sketch=16)
    assert accuracy(built, run_all(built, built.phases[:2])[-1]) > 0.3
    few, all_of_it = (
        int(summing(b).groups[0].client.sent_bytes(tiny.batch_of(b, 0))) for b in (built, whole)
    )
    assert few < all_of_it / 2.5


def test_features_are_cut_to_their_bound_and_noise_is_shared_out():
    built = build("ridge", **ONE, bound=2.0, noise=0.5)
    found = one_round(built, *built.phases).strategy_state.sums
    h, labels = seen(built, tiny.start(built, *built.phases))
    cut = h * np.minimum(1, 2.0 / np.linalg.norm(h, axis=1, keepdims=True))
    noise = found.class_sums - cut.T @ np.eye(10)[labels]
    noise_of_gram = closed_form.unpack(found.gram, 64) - cut.T @ cut
    # Eight shares of variance 1/8 are one of 0.5 sqrt(3) times what an example moves.
    for of_part, scale in ((noise_of_gram, 2.0**2), (noise, 2.0)):
        assert np.std(np.asarray(of_part)) == pytest.approx(0.5 * np.sqrt(3) * scale, rel=0.1)


def test_until_one_is_chosen_the_head_is_the_candidate_nearest_to_the_middle_that_is_finite():
    old = {"head": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}}
    state = ServerState(old, {}, (), (), jnp.int32(0))

    @jax.jit
    def chosen(finite, counts):
        values = jnp.where(finite == 1, jnp.arange(1.0, 5.0), jnp.nan)
        kernel = jnp.broadcast_to(values[:, None, None], (4, 3, 2))
        heads = closed_form.Heads(kernel, jnp.zeros((4, 2)))
        return sums.with_middle("head", state, heads, counts)["head"]["kernel"][0, 0]

    cases = {(1, 1, 1, 1): 3, (1, 1, 0, 1): 4, (1, 1, 0, 0): 2, (1, 0, 0, 0): 1}
    for finite, expected in cases.items():
        assert chosen(jnp.array(finite), jnp.ones(2)) == expected
    assert np.isnan(chosen(jnp.zeros(4), jnp.ones(2)))
    assert chosen(jnp.ones(4), jnp.zeros(2)) == 0  # without any example


def test_sums_of_kept_features_are_those_of_examples():
    built = build("ridge", **ONE)
    (phase,) = built.phases
    state = tiny.start(built, phase)
    kept = jax.jit(phase.keeping.compute)(state.params, state.model_state, built.data.examples)
    assert kept["kept"].dtype == jnp.float32
    client, own = phase.groups[0].client, tiny.own_keys(built, jnp.int32(3))
    found, expected = (
        jax.jit(client.update)(state, tiny.batch_of(b, 3), own).message
        for b in (built._replace(data=built.data._replace(examples=kept)), built)
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(*map(jax.tree.leaves, (one, other)), rtol=1e-5)


@pytest.mark.parametrize(
    "method, fields, words",
    (
        ("head_zo", {"sketch": 1000}, "config.head_zo.sketch=1000 is more than"),
        ("ridge", {"data": {"val_fraction": 0.0}}, "config.data.val_fraction leaves none"),
        ("gaussian_head", {"data": {"val_fraction": 0.0}}, "config.data.val_fraction leaves none"),
        ("ridge_cg", {"data": {"val_fraction": 0.0}, "check_every": 2}, "check_every=2 asks"),
        ("ridge", {"penalties": (0.1, -1.0)}, "one number or more, none below 0"),
        ("ridge", {"noise": 1.0, "bound": 1.0}, "allowed with noise: one of them"),
        ("ridge", {**ONE, "noise": 1.0, "calibrate": True}, "config.ridge.calibrate=True"),
    ),
)
def test_bad_settings_are_one_line(method, fields, words):
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")) as caught:
        build(method, **fields)
    assert "\n" not in str(caught.value)
