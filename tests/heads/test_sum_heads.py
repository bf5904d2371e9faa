"""Heads from everyone's sums: those of pooled data, whoever holds what, joins, or drops out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.heads.problems import (
    after,
    batch_of,
    build,
    keys_of,
    logits,
    one_round,
    run_all,
    seen,
)
from zo_fl.engine import trees
from zo_fl.engine.algorithm import Cohort, ServerState
from zo_fl.engine.fields import ConfigError
from zo_fl.engine.types import HIGH
from zo_fl.heads import closed_form, messages, sums
from zo_fl.heads.gaussian_head import SHRINKAGES

pytestmark = pytest.mark.slow

ONE = {"penalties": (0.05,), "calibrate": False}
PENALTIES = (1e-4, 0.1, 3.0, 100.0)


def pooled_ridge(h, labels, penalty):
    """NumPy, float64: ``(kernel, bias)`` of ridge regression on standardized features."""
    mean, std = h.mean(0), h.std(0)
    std[std < 1e-9] = np.inf
    x, y = (h - mean) / std, np.eye(10)[labels]
    weights = np.linalg.solve(
        x.T @ x / len(x) + penalty * np.eye(x.shape[1]), x.T @ (y - y.mean(0)) / len(x)
    )
    kernel = weights / std[:, None]
    return kernel, y.mean(0) - mean @ kernel


def assert_pooled(built, params, clients=range(8), penalty=0.05, tolerance=1e-5):
    """The head is the ridge regression of these clients' pooled examples."""
    state = ServerState(params, {}, (), (), jnp.int32(0))
    kernel, bias = pooled_ridge(*seen(built, state, clients), penalty)
    h, _ = seen(built, state)
    np.testing.assert_allclose(logits(params, h), h @ kernel + bias, rtol=0, atol=tolerance)


def accuracy(built, state):
    h, labels = seen(built, state)
    return (logits(state.params, h).argmax(1) == labels).mean()


def with_update(phase, change):
    """Returns a phase whose clients do ``change(update, state, batch, keys)``."""
    (group,) = phase.groups
    update = group.client.update
    client = group.client._replace(update=lambda *given: change(update, *given))
    return phase._replace(groups=(group._replace(client=client),))


@pytest.mark.parametrize(
    "how",
    (
        {"data": {"partition": "iid"}},
        {"data": {"alpha": 0.1}},
        {"data": {"partition": "shards", "val_fraction": 0.0}},
        {"run": {"clients_per_vmap": 3}},
        {"run": {"num_devices": 4}},
        {"microbatch": 7},
    ),
)
def test_ridge_of_everyone_s_sums_is_that_of_pooled_data(how):
    built = build("ridge", **ONE, **how)
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
    own = keys_of(built, 3)
    message = jax.jit(group.client.update)(fresh, batch_of(built, 3), own).message
    own_sums, _ = group.client.decode(message, fresh, own)
    rest = jax.tree.map(jnp.subtract, state.strategy_state.sums, own_sums)
    heads = jax.jit(closed_form.ridge)(rest, jnp.float32([0.05]))
    head = {"kernel": heads.kernel[0], "bias": heads.bias[0]}
    joined.remove(3)
    assert_pooled(built, state.params | {"head": head}, joined, tolerance=3e-5)


@pytest.mark.parametrize("method", ("ridge", "gaussian_head", "ridge_cg"))
def test_a_client_with_features_that_are_not_finite_drops_out_alone(method):
    fields = ONE if method == "ridge" else {"calibrate": False}
    if method == "ridge_cg":
        fields |= {"check_every": 0}
    built = build(method, **fields)

    def broken(update, state, batch, own):
        bad = jax.tree.map(
            lambda leaf: jnp.where(batch.client_id == 2, jnp.nan, leaf), state.params["hidden"]
        )
        return update(state._replace(params=state.params | {"hidden": bad}), batch, own)

    state = run_all(built, [with_update(phase, broken) for phase in built.phases])[-1]
    assert np.isfinite(logits(state.params, seen(built, state)[0])).all()
    assert accuracy(built, state) > 0.2
    joined = getattr(state.strategy_state, "joined", None)
    assert joined is None or joined[2] == 0


def test_the_penalty_and_the_temperature_are_those_that_validation_examples_say():
    built = build("ridge", penalties=PENALTIES)
    summed, chosen, calibrated = run_all(built)
    h, labels = seen(built, summed, data=built.federation.validation)
    heads = summed.strategy_state.heads
    found = [h @ np.float64(heads.kernel[i]) + np.float64(heads.bias[i]) for i in range(4)]
    best = int(np.argmax([(one.argmax(1) == labels).sum() for one in found]))
    np.testing.assert_array_equal(chosen.params["head"]["kernel"], heads.kernel[best])
    ratio = np.asarray(calibrated.params["head"]["kernel"] / chosen.params["head"]["kernel"])
    losses = {}
    for temperature in 2.0 ** np.arange(-3, 6.5, 0.5):
        z = temperature * found[best]
        log_p = z - z.max(1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
        losses[temperature] = -log_p[np.arange(len(labels)), labels].mean()
    assert float(np.median(ratio)) == pytest.approx(min(losses, key=losses.get), rel=1e-5)


def test_class_means_give_the_discriminant_of_pooled_data_with_the_high_tier_s_covariance():
    built = build("gaussian_head", calibrate=False)
    _, state, _ = run_all(built)
    h, labels = seen(built, state)
    high = np.flatnonzero(np.asarray(built.federation.clients.client_tiers) == HIGH)
    ours, of_high = seen(built, state, high)
    means = np.stack([h[labels == k].mean(0) for k in range(10)])
    residuals = ours - np.stack([ours[of_high == k].mean(0) for k in range(10)])[of_high]
    s = residuals.T @ residuals / len(residuals)
    s += SHRINKAGES[3] * np.trace(s) / len(s) * np.eye(len(s))  # the middle one
    solved = np.linalg.solve(s, means.T)
    expected = h @ solved - np.einsum("kd,dk->k", means, solved) / 2
    expected += np.log(np.bincount(labels, minlength=10) / len(labels))
    # Equal up to what all classes share.
    center = lambda logits: logits - logits.mean(1, keepdims=True)  # noqa: E731
    got = center(logits(state.params, h))
    np.testing.assert_allclose(got, center(expected), atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize("method", ("ridge", "gaussian_head"))
@pytest.mark.parametrize("encoding", messages.ENCODINGS)
def test_the_bill_is_the_bytes_of_the_message_without_classes_that_are_not_held(method, encoding):
    built = build(method, data={"alpha": 0.1}, encoding=encoding)
    (phase,) = (p for p in built.phases if p.groups[0].client.sent_bytes)
    client, state = phase.groups[0].client, tiny.start(built, phase)

    def sent(batch, held):
        message = client.update(state, batch, keys_of(built, 0)).message
        if method == "ridge":
            leaves = [message.gram, message.class_sums[:, held]]
        else:
            leaves = [leaf[held] for leaf in jax.tree.leaves(message.class_sums)]
        return leaves, message.class_counts[held]

    for j in (0, 3):
        batch = batch_of(built, j)
        held = np.bincount(batch.examples["label"], batch.mask, 10) > 0
        shapes = jax.eval_shape(lambda batch, held=held: sent(batch, held), batch)
        assert int(client.sent_bytes(batch)) == trees.num_bytes(shapes) + 2  # a bit a class
        assert 0 < held.sum() < 10


@pytest.mark.parametrize("method", ("ridge", "gaussian_head"))
def test_a_sketch_sends_less_and_still_learns(method):
    whole, built = build(method), build(method, sketch=16)
    assert accuracy(built, run_all(built)[-1]) > 0.3

    def sent(built):
        (phase,) = (p for p in built.phases if p.groups[0].client.sent_bytes)
        return int(phase.groups[0].client.sent_bytes(batch_of(built, 0)))

    assert sent(built) < sent(whole) / 2.5


def test_bounded_features_are_cut_to_their_bound_and_noise_is_shared_out():
    private = {**ONE, "bound": 2.0}
    built, noisy = build("ridge", **private), build("ridge", **private, noise=0.5)
    exact, found = (one_round(b, *b.phases).strategy_state.sums for b in (built, noisy))
    h, labels = seen(built, tiny.start(built, *built.phases))
    cut = h * np.minimum(1, 2.0 / np.linalg.norm(h, axis=1, keepdims=True))
    np.testing.assert_allclose(exact.class_sums, cut.T @ np.eye(10)[labels], rtol=1e-4, atol=1e-3)
    # Eight shares of variance 1/8 are one of 0.5 sqrt(3) times what an example moves.
    for part, scale in (("gram", 2.0**2), ("class_sums", 2.0)):
        deviation = np.std(np.asarray(getattr(found, part) - getattr(exact, part)))
        assert deviation == pytest.approx(0.5 * np.sqrt(3) * scale, rel=0.1)


@pytest.mark.parametrize(
    ("finite", "chosen"),
    [((1, 1, 1, 1), 2), ((1, 1, 0, 1), 3), ((1, 1, 0, 0), 1), ((1, 0, 0, 0), 0), ((0, 0, 0, 0), 0)],
)
def test_until_one_is_chosen_the_head_is_the_candidate_nearest_to_the_middle_that_is_finite(
    finite, chosen
):
    values = jnp.where(jnp.array(finite) == 1, jnp.arange(4.0), jnp.nan)
    heads = closed_form.Heads(jnp.broadcast_to(values[:, None, None], (4, 3, 2)), jnp.zeros((4, 2)))
    old = {"head": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}}
    state = ServerState(old, {}, (), (), jnp.int32(0))
    params = sums.with_middle("head", state, heads, jnp.ones(2))
    np.testing.assert_array_equal(params["head"]["kernel"], jnp.full((3, 2), values[chosen]))


def test_rounding_that_small_penalties_cannot_bear_leaves_a_head_that_learns():
    model = {"name": "cnn", "norm": "group", "stages": True}
    built = build(
        "ridge", model=model, encoding="int4", penalties=(1e-4, 1e-3, 10.0), calibrate=False
    )
    summed, chosen = run_all(built)
    for state in (summed, chosen):
        assert accuracy(built, state) > 0.3


@pytest.mark.parametrize("kept_by", ("clients", "the simulation"))
def test_sums_of_kept_features_are_those_of_examples(kept_by):
    built = build("ridge", **ONE) if kept_by != "clients" else build("head_sgd", cache=True)
    compute = built.phases[0].keeping.compute
    (phase,) = build("ridge", **ONE).phases
    state = tiny.start(built, phase)
    kept = compute(state.params, state.model_state, built.data.examples)
    assert kept["kept"].dtype == (jnp.float16 if kept_by == "clients" else jnp.float32)
    found = one_round(built._replace(data=built.data._replace(examples=kept)), phase, state)
    expected = one_round(built, phase, state).strategy_state.sums
    tolerance = {"rtol": 2e-3, "atol": 0.5} if kept_by == "clients" else {"rtol": 1e-5}
    for one, other in zip(found.strategy_state.sums, expected, strict=True):
        np.testing.assert_allclose(one, other, **tolerance)


def test_phases_after_the_first_go_on_with_the_state_before_and_the_first_does_not():
    built = build("gaussian_head")
    states = run_all(built)
    for phase, state in zip(built.phases[1:], states[:-1], strict=True):
        assert after(phase, state).strategy_state is state.strategy_state
    again = after(built.phases[0], states[-1])
    assert not np.any(again.strategy_state.joined)
    assert [phase.evaluated is None for phase in built.phases] == [True, True, True, False]
    assert built.phases[-1].name == "gaussian_head"


@pytest.mark.parametrize(
    "method, fields, words",
    (
        ("ridge", {"sketch": 65}, "config.ridge.sketch=65 is more than"),
        ("head_zo", {"sketch": 1000}, "config.head_zo.sketch=1000 is more than"),
        ("ridge", {"data": {"val_fraction": 0.0}}, "config.data.val_fraction leaves none"),
        ("gaussian_head", {"data": {"val_fraction": 0.0}}, "config.data.val_fraction leaves none"),
        (
            "ridge_cg",
            {"data": {"val_fraction": 0.0}, "check_every": 2},
            "ridge_cg.check_every=2 asks",
        ),
        ("ridge", {"penalties": (0.1, -1.0)}, "one number or more, none below 0"),
        ("ridge", {"noise": 1.0, "bound": 1.0}, "allowed with noise: one of them"),
        (
            "ridge",
            {**ONE, "noise": 1.0, "bound": 1.0, "calibrate": True},
            "config.ridge.calibrate=True",
        ),
        ("ridge", {**ONE, "noise": 1.0, "bound": 1.0, "sketch": 8}, "allowed with noise: 0"),
        ("ridge", {**ONE, "noise": 1.0}, "config.ridge.bound=0.0 bounds nothing"),
    ),
)
def test_bad_settings_are_one_line(method, fields, words):
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")) as caught:
        build(method, **fields)
    assert "\n" not in str(caught.value)
