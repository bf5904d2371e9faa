"""Heads from everyone's sums: those of pooled data, whoever holds what, joins, or drops out."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zo_fl
from tests import tiny
from zo_fl import api as train
from zo_fl.engine import trees
from zo_fl.engine.errors import ConfigError
from zo_fl.engine.types import HIGH, Cohort, ServerState
from zo_fl.heads import candidates, closed_form, ridge
from zo_fl.host.metrics import read_metrics
from zo_fl.host.traffic import phase_traffic

pytestmark = pytest.mark.slow

ONE = {"ridge__penalties": (0.05,), "ridge__calibrate": False}


def features_and_labels(built, state, clients=range(8), data=None):
    """All examples of some clients in one place, float64."""
    data = built.federation.clients if data is None else data
    rows = np.concatenate([data.client_indices[j, : data.client_sizes[j]] for j in clients])
    # Of the whole set, and what is asked for picked afterwards: another number of rows would be
    # compiled anew, operation by operation.
    mask = np.ones(len(data.examples["label"]), bool)
    features = built.task.features(state.params, state.model_state, data.examples, mask)
    return np.asarray(features, np.float64)[rows], data.examples["label"][rows]


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


def one_round(built, phase, state=None):
    state = tiny.start(built, phase) if state is None else state
    step = jax.jit(tiny.algorithm(built, phase).round)
    return step(state, built.data_of(phase), built.run_key)[0]


def round_of_cohort(built, phase):
    """Returns jitted ``(state, client_ids) -> state``: a round of these clients."""
    (group,) = phase.groups

    @jax.jit
    def step(state, client_ids):
        drawn = Cohort(client_ids, jnp.ones(len(client_ids), bool))
        groups = (group._replace(sample_cohort=lambda key: drawn),)
        algorithm = tiny.algorithm(built, phase._replace(groups=groups))
        return algorithm.round(state, built.data_of(phase), built.run_key)[0]

    return lambda state, client_ids: step(state, jnp.array(client_ids, jnp.int32))


def hits(state, h, labels):
    """Returns the share of examples that a state's head gets right."""
    head = {name: np.float64(leaf) for name, leaf in state.params["head"].items()}
    return ((h @ head["kernel"] + head["bias"]).argmax(1) == labels).mean()


def sums_phase(built):
    """The phase in which everyone sends its sums."""
    return [phase for phase in built.phases if not phase.on_validation][-1]


def run_all(built):
    """Every phase once, as a run does; the states after each."""
    states, state = [], None
    for phase in built.phases:
        start = tiny.start(built, phase)
        if state is not None:
            start = start._replace(params=state.params)
        if phase.continues:
            start = start._replace(strategy_state=state.strategy_state)
        states.append(state := one_round(built, phase, start))
    return states


def assert_same_logits(params, kernel, bias, h, tolerance=1e-5):
    head = {name: np.float64(leaf) for name, leaf in params["head"].items()}
    np.testing.assert_allclose(
        h @ head["kernel"] + head["bias"], h @ kernel + bias, rtol=0, atol=tolerance
    )


@pytest.mark.parametrize(
    "hows",
    (
        (  # one program, whoever holds what
            {"data__partition": "iid"},
            {"data__alpha": 0.1},
            {"data__partition": "shards", "data__shards_per_client": 1},
        ),
        ({"run__clients_per_vmap": 3},),
        ({"run__num_devices": 4},),
        ({"ridge__microbatch": 7},),
        ({"data__val_fraction": 0.0},),
    ),
)
def test_ridge_of_everyone_s_sums_is_that_of_pooled_data(hows):
    step = None
    for how in hows:
        built = tiny.build("ridge", **ONE, **how)
        (phase,) = built.phases
        step = jax.jit(tiny.algorithm(built, phase).round) if step is None else step
        after = step(tiny.start(built, phase), built.data, built.run_key)[0]
        h, labels = features_and_labels(built, after)
        assert_same_logits(after.params, *pooled_ridge(h, labels, 0.05), h)
        assert after.strategy_state.sums.class_counts.sum() == len(labels)


def test_streamed_sums_are_the_same_also_of_a_run_that_is_stopped_between_its_phases(tmp_path):
    class Stop(Exception):
        pass

    def stop(row):
        if row["phase"] == "ridge choose":
            raise Stop

    whole = train.run(tiny.config("ridge"), tmp_path / "whole", quiet=True)
    streamed = tiny.config("ridge", run__data="stream")
    with pytest.raises(Stop):
        train.run(streamed, tmp_path / "streamed", quiet=True, on_round=stop)
    parts = train.run(streamed, tmp_path / "streamed", quiet=True)
    assert whole["final_accuracy"] > 0.3
    for name in ("final_accuracy", "phases", "low_uplink_bytes", "uplink_bytes"):
        assert parts[name] == whole[name]


def test_who_drops_out_joins_late_or_is_forgotten_is_just_not_in_the_data():
    built = tiny.build("ridge", **ONE, ridge__num_rounds=3)
    (phase,) = built.phases
    some, late = [0, 2, 3, 5], [1, 3, 5, 7]
    step = round_of_cohort(built, phase)
    state = step(tiny.start(built, phase), some)
    h, labels = features_and_labels(built, state, some)
    everyone = features_and_labels(built, state)[0]
    assert_same_logits(state.params, *pooled_ridge(h, labels, 0.05), everyone)
    # Who is drawn again is not counted again.
    state = step(state, late)
    joined = sorted({*some, *late})
    np.testing.assert_array_equal(np.flatnonzero(state.strategy_state.joined), joined)
    h, labels = features_and_labels(built, state, joined)
    assert_same_logits(state.params, *pooled_ridge(h, labels, 0.05), everyone)
    # Client 3 asks to be forgotten: its sums, which it can compute again, are subtracted.
    batch = trees.squeeze(tiny.gather(built, [3]))
    fresh = state._replace(strategy_state=phase.aggregation.init(None))

    @jax.jit
    def without(sums, fresh, batch):
        message = tiny.only_strategy(phase).client_update(fresh, batch, built.run_key).message
        rest = ridge.subtract(sums, ridge.from_message("float32", message))
        return closed_form.ridge(rest, jnp.float32([0.05]))

    heads = without(state.strategy_state.sums, fresh, batch)
    h, labels = features_and_labels(built, state, [j for j in joined if j != 3])
    head = {"head": {"kernel": heads.kernel[0], "bias": heads.bias[0]}}
    assert_same_logits(head, *pooled_ridge(h, labels, 0.05), everyone, 3e-5)


@pytest.mark.parametrize("name", ("ridge", "gaussian_head", "ridge_cg"))
def test_a_client_with_features_that_are_not_finite_drops_out_alone(name):
    built = tiny.build(name, **ONE)
    task = built.task

    def broken(state, batch, run_key, update):
        bad = jax.tree.map(
            lambda leaf: jnp.where(batch.client_id == 2, jnp.nan, leaf), state.params["hidden"]
        )
        return update(state._replace(params=state.params | {"hidden": bad}), batch, run_key)

    state = None
    for phase in built.phases:
        (group,) = phase.groups
        update = group.strategy.client_update
        strategy = group.strategy._replace(
            client_update=lambda s, b, k, update=update: broken(s, b, k, update)
        )
        start = tiny.start(built, phase)
        if phase.continues:
            start = start._replace(params=state.params, strategy_state=state.strategy_state)
        state = one_round(built, phase._replace(groups=(group._replace(strategy=strategy),)), start)
    h, labels = features_and_labels(built, state)
    predicted = (h @ np.float64(state.params[task.head]["kernel"])).argmax(1)
    assert np.isfinite(h).all() and (predicted == labels).mean() > 0.2
    joined = getattr(state.strategy_state, "joined", None)
    assert joined is None or joined[2] == 0


def test_the_penalty_and_the_temperature_are_those_that_validation_examples_say():
    built = tiny.build("ridge", ridge__penalties=(1e-4, 0.1, 3.0, 100.0))
    sums, chosen, calibrated = run_all(built)
    val = built.federation.validation
    h, labels = features_and_labels(built, sums, data=val)
    heads = sums.strategy_state.heads
    logits = [h @ np.float64(heads.kernel[i]) + np.float64(heads.bias[i]) for i in range(4)]
    right = [(one.argmax(1) == labels).sum() for one in logits]
    best = int(np.argmax(right))
    np.testing.assert_array_equal(chosen.params["head"]["kernel"], heads.kernel[best])
    ratio = np.asarray(calibrated.params["head"]["kernel"] / chosen.params["head"]["kernel"])
    temperature = float(np.median(ratio))
    losses = {}
    for t in 2.0 ** np.arange(-3, 6.5, 0.5):
        z = t * logits[best]
        z = z - z.max(1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
        losses[t] = -log_p[np.arange(len(labels)), labels].mean()
    assert temperature == pytest.approx(min(losses, key=losses.get), rel=1e-5)


@functools.cache
def conjugate_gradients(rounds, **changes):
    """The experiment and the states after each iteration."""
    changes = {"num_rounds": rounds, "penalty": 0.05, "check_every": 0, **changes}
    built = tiny.build(
        "ridge_cg",
        data__num_clients=4,
        **{f"ridge_cg__{name}": value for name, value in changes.items()},
    )
    *before, iterate = built.phases
    state = None
    for phase in before:
        start = tiny.start(built, phase)
        state = one_round(built, phase, start if state is None else carried(start, state))
    states = [carried(tiny.start(built, iterate), state)]
    step = jax.jit(tiny.algorithm(built, iterate).round)
    for _ in range(rounds):
        states.append(step(states[-1], built.data, built.run_key)[0])
    return built, states


def carried(start, state):
    return start._replace(params=state.params, strategy_state=state.strategy_state)


@pytest.mark.parametrize("preconditioner, rounds", (("none", 40), ("high", 14)))
def test_conjugate_gradients_arrive_at_ridge(preconditioner, rounds):
    built, states = conjugate_gradients(rounds, preconditioner=preconditioner, shrinkage=0.01)
    h, labels = features_and_labels(built, states[-1], range(4))
    assert_same_logits(states[-1].params, *pooled_ridge(h, labels, 0.05), h, 1e-4)


def test_the_preconditioner_is_the_high_tier_s_covariance_within_classes_and_everyone_s_between():
    built, states = conjugate_gradients(14, preconditioner="high", shrinkage=0.01)
    known = states[0].strategy_state.solution
    h, labels = features_and_labels(built, states[0], range(4))
    # The factor is that of W of the high tier, and B and the scales of everyone.
    tiers = built.federation.clients.client_tiers
    ours, of_high = features_and_labels(built, states[0], [j for j in range(4) if tiers[j] == HIGH])
    scale, means = np.float64(known.scale), {c: h[labels == c].mean(0) for c in set(labels)}
    inner = np.stack([x - ours[of_high == c].mean(0) for x, c in zip(ours, of_high, strict=True)])
    matrix = inner.T @ inner / len(inner)
    for c, mean in means.items():
        matrix += np.mean(labels == c) * np.outer(mean - h.mean(0), mean - h.mean(0))
    matrix = matrix * np.outer(scale, scale) + 0.06 * np.eye(len(scale))
    factor = np.float64(known.factor)
    np.testing.assert_allclose(factor @ factor.T, matrix, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        matrix @ np.float64(known.direction), known.residual, rtol=1e-3, atol=1e-5
    )


def test_conjugate_gradients_end_where_the_count_stops_rising(tmp_path):
    changes = {"num_rounds": 90, "check_every": 3, "patience": 2, "calibrate": True}
    changes["preconditioner"] = "none"
    config = tiny.config(
        "ridge_cg", **{f"ridge_cg__{key}": value for key, value in changes.items()}
    )
    stops = []

    def stop(row):
        if row["round"] == 7 and not stops:
            stops.append(row)
            raise KeyboardInterrupt

    # In two parts: what it knows of earlier counts is resumed.
    with pytest.raises(KeyboardInterrupt):
        train.run(config, tmp_path, quiet=True, on_round=stop)
    summary = train.run(config, tmp_path, quiet=True)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["round"] for row in rows] == list(range(1, summary["rounds"] + 1))
    # One round of sums, iterations, one of temperatures.
    checks = {row["round"] - 1: row["check_accuracy"] for row in rows if "check_accuracy" in row}
    iterations = summary["rounds"] - 2
    assert list(checks) == list(range(3, iterations + 1, 3)) and 6 < iterations < 90
    best = max(checks, key=checks.get)  # the first of equals
    assert iterations == best + 6
    (last,) = [row for row in rows if row["round"] == summary["rounds"] - 1]
    assert last["val_accuracy"] == pytest.approx(checks[best], abs=1e-6)
    assert summary["final_accuracy"] == summary["phases"][-1]["test_accuracy"]
    # The bill: three counts, and what an iteration sends, and no iteration that was not made.
    built = tiny.build("ridge_cg", **{f"ridge_cg__{key}": value for key, value in changes.items()})
    sums, iterate, calibrate = (
        phase_traffic(phase, *jax.eval_shape(built.task.init, built.run_key), built.data_of(phase))
        for phase in built.phases
    )
    counted = 8 * 4 * len(checks)
    expected = sums.uplink + iterations * iterate.uplink + counted + calibrate.uplink
    assert summary["uplink_bytes"] == expected


def test_head_sgd_is_gradient_descent_on_the_head_written_out():
    changes = {"batch_size": 0, "local_epochs": 2, "lr": 0.3, "server_lr": 0.7}
    built = tiny.build("head_sgd", **{f"head_sgd__{name}": v for name, v in changes.items()})
    (phase,) = built.phases
    start = tiny.start(built, phase)
    first = jax.tree.map(np.float64, start.params)
    after = one_round(built, phase, start)
    total, deltas = 0, {"kernel": 0.0, "bias": 0.0}
    for client in range(8):
        h, labels = features_and_labels(built, start, [client])
        kernel, bias = first["head"]["kernel"], first["head"]["bias"]
        for _ in range(2):
            logits = h @ kernel + bias
            p = np.exp(logits - logits.max(1, keepdims=True))
            error = p / p.sum(1, keepdims=True) - np.eye(10)[labels]
            kernel = kernel - 0.3 * h.T @ error / len(h)
            bias = bias - 0.3 * error.mean(0)
        total += len(h)
        deltas["kernel"] += len(h) * (first["head"]["kernel"] - kernel)
        deltas["bias"] += len(h) * (first["head"]["bias"] - bias)
    for name, delta in deltas.items():
        expected = first["head"][name] - 0.7 * delta / total
        np.testing.assert_allclose(after.params["head"][name], expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(after.params["hidden"], start.params["hidden"])


@pytest.mark.parametrize("name", ("ridge_cg", "head_sgd"))
def test_kept_features_save_passes_and_change_nothing_but_rounding(name, tmp_path):
    changes = {f"{name}__num_rounds": 3}
    if name == "ridge_cg":
        changes |= {"ridge_cg__mirror": True, "ridge_cg__penalty": 0.05}
    looked = train.run(tiny.config(name, **changes), tmp_path / "looked", quiet=True)
    kept = {**changes, f"{name}__cache": True}
    summary = train.run(tiny.config(name, **kept), tmp_path / "kept", quiet=True)
    heads = [zo_fl.load(tmp_path / folder).params["head"] for folder in ("looked", "kept")]
    chex.assert_trees_all_close(*heads, rtol=0.02, atol=2e-3)
    # Three passes of training become one; ridge_cg began with one.
    assert summary["low_passes"] == pytest.approx(
        looked["low_passes"] / {"ridge_cg": 4}.get(name, 3), abs=1
    )
    for key in ("low_uplink_bytes", "uplink_bytes", "downlink_bytes"):
        assert summary[key] == looked[key]
    if name == "head_sgd":  # one of them will do: where data are streamed nothing is kept
        streamed = tiny.config(name, **kept, run__data="stream")
        again = train.run(streamed, tmp_path / "streamed", quiet=True)
        assert again["final_accuracy"] == pytest.approx(summary["final_accuracy"], abs=0.02)


@pytest.mark.parametrize("covariance", ("high", "all", "none"))
def test_class_means_give_the_discriminant_of_pooled_data(covariance):
    built = tiny.build(
        "gaussian_head", gaussian_head__covariance=covariance, gaussian_head__shrinkages=(0.3,)
    )
    state = run_all(built)[-1]
    h, labels = features_and_labels(built, state)
    high = np.flatnonzero(np.asarray(built.federation.clients.client_tiers) == HIGH)
    means = np.stack([h[labels == k].mean(0) for k in range(10)])
    if covariance == "none":
        distances = ((h[:, None] - means[None]) ** 2).sum(-1) / 2
        expected = -distances
    else:
        of = h, labels
        if covariance == "high":
            of = features_and_labels(built, state, high)
        own = np.stack([of[0][of[1] == k].mean(0) for k in range(10)])
        residuals = of[0] - own[of[1]]
        s = residuals.T @ residuals / len(residuals)
        s += 0.3 * np.trace(s) / len(s) * np.eye(len(s))
        expected = h @ np.linalg.solve(s, means.T)
        expected += -np.einsum("kd,dk->k", means, np.linalg.solve(s, means.T)) / 2
        expected += np.log(np.bincount(labels, minlength=10) / len(labels))
    head = {name: np.float64(leaf) for name, leaf in state.params["head"].items()}
    got = h @ head["kernel"] + head["bias"]
    center = lambda logits: logits - logits.mean(1, keepdims=True)  # noqa: E731
    np.testing.assert_allclose(center(got), center(expected), atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize("name", ("ridge", "gaussian_head"))
@pytest.mark.parametrize("encoding", ("float32", "float16", "int8", "int4"))
def test_the_bill_is_the_bytes_of_the_message_without_classes_that_are_not_held(name, encoding):
    built = tiny.build(name, data__alpha=0.1, **{f"{name}__encoding": encoding})
    phase = sums_phase(built)
    strategy = tiny.only_strategy(phase)
    state = tiny.start(built, phase)

    def sent(batch, held):
        message = strategy.client_update(state, batch, built.run_key).message
        if name == "ridge":
            leaves = [message.gram, message.deviations, message.class_sums[:, held]]
        else:
            leaves = [leaf[held] for leaf in jax.tree.leaves(message.means)]
        return leaves, message.class_counts[held]

    for client in (0, 3):
        batch = trees.squeeze(tiny.gather(built, [client]))
        held = np.bincount(batch.examples["label"], batch.mask, 10) > 0
        shapes = jax.eval_shape(lambda batch, held=held: sent(batch, held), batch)
        assert int(strategy.sent_bytes(batch)) == trees.num_bytes(shapes) + 2  # a bit a class
        assert 0 < held.sum() < 10


def test_fewer_bytes_change_the_heads_a_little():
    accuracies = {}
    for encoding in ("float32", "float16", "int8"):
        built = tiny.build("ridge", ridge__encoding=encoding, **ONE)
        state = one_round(built, built.phases[0])
        accuracies[encoding] = hits(state, *features_and_labels(built, state))
    for encoding, worst in (("float16", 0.01), ("int8", 0.06)):
        assert abs(accuracies["float32"] - accuracies[encoding]) < worst, encoding


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
    params = candidates.with_middle("head", state, heads, jnp.ones(2))
    np.testing.assert_array_equal(params["head"]["kernel"], jnp.full((3, 2), values[chosen]))


def test_rounding_that_small_penalties_cannot_bear_ends_no_run(tmp_path):
    model = {"model__name": "cnn", "model__norm": "group", "model__stages": True}
    coarse = {"ridge__encoding": "int4", "ridge__penalties": (1e-4, 1e-3, 10.0)}
    config = tiny.config("ridge", **model, **coarse, ridge__calibrate=False)
    summary = zo_fl.run(config, tmp_path / "run", quiet=True)
    assert summary["diverged_round"] is None
    assert summary["final_accuracy"] > 0.3


@pytest.mark.parametrize("basis", ("principal", "random"))
@pytest.mark.parametrize("name", ("ridge", "gaussian_head"))
def test_a_sketch_sends_less_and_still_learns(name, basis):
    changes = {f"{name}__sketch": 16, f"{name}__basis": basis}
    whole = tiny.build(name, **ONE)
    built = tiny.build(name, **ONE, **changes)
    state = run_all(built)[-1]
    assert hits(state, *features_and_labels(built, state)) > 0.3
    sent = []
    for one in (built, whole):
        phase = sums_phase(one)
        start = tiny.start(one, phase)
        sent.append(phase_traffic(phase, start.params, {}, one.data).low_uplink)
    assert sent[0] < sent[1] / 2.5


def test_patches_whiten_and_only_the_high_tier_is_asked():
    built = tiny.build("patches+ridge", data__alpha=100.0)
    phase = built.phases[0]
    after = one_round(built, phase)
    tiers = np.asarray(built.federation.clients.client_tiers)
    assert set(phase.groups[0].eligible) == set(np.flatnonzero(tiers == HIGH))
    kernel = np.asarray(after.params["filters"]["kernel"], np.float64)
    size, _, channels, count = kernel.shape
    data = built.federation.clients
    x = []
    for j in np.flatnonzero(tiers == HIGH):
        rows = data.client_indices[j, : data.client_sizes[j]]
        x.append(np.asarray(built.task.inputs({"image": data.examples["image"][rows]})))
    x = np.concatenate(x)
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    patches = np.moveaxis(windows, 3, 5).reshape(-1, size * size * channels).astype(np.float64)
    mean, covariance = patches.mean(0), np.cov(patches.T, bias=True)
    w, v = np.linalg.eigh(covariance)
    whitening = v @ np.diag((w + 0.1) ** -0.5) @ v.T
    # A kernel is the whitening of a unit vector that itself is a whitened patch.
    units = np.linalg.solve(whitening, kernel.reshape(-1, count)).T
    np.testing.assert_allclose(np.linalg.norm(units, axis=1), 1, atol=1e-3)
    white = (patches - mean) @ whitening
    white /= np.linalg.norm(white, axis=1, keepdims=True)
    for unit in units:
        assert np.max(white @ unit) > 1 - 1e-4
    bias = -mean @ kernel.reshape(-1, count)
    np.testing.assert_allclose(after.params["filters"]["bias"], bias, atol=1e-4)


def test_gaussian_kernels_hold_no_patch_and_learn_as_well():
    built = tiny.build("patches+ridge", patches__kernels="gaussian", **ONE)
    phase = built.phases[0]
    start, batch = tiny.start(built, phase), trees.squeeze(tiny.gather(built, [0]))
    update = tiny.only_strategy(phase).client_update
    assert jax.eval_shape(update, start, batch, built.run_key).message[-1].size == 0
    after = one_round(built, phase, start)
    assert all(np.linalg.norm(leaf) > 0 for leaf in jax.tree.leaves(after.params["filters"]))


@pytest.mark.parametrize("name", ("fedavg+ridge+zo", "ridge_cg+head_sgd"))
def test_methods_follow_each_other_and_every_phase_has_its_gain(name, tmp_path):
    config = tiny.config(name, **ONE, data__alpha=100.0, zo__lr=1e-5, warmup__lr=1e-3)
    summary = train.run(config, tmp_path, quiet=True)
    assert summary["phases"][0]["phase"] in ("warmup", "ridge_cg")
    assert summary["final_accuracy"] > 0.3
    assert summary["final_accuracy"] == summary["phases"][-1]["test_accuracy"]
    assert summary["low_uplink_bytes"] > 0 and summary["low_passes"] > 0


def test_a_run_that_only_prepares_is_not_evaluated_and_others_start_from_it(tmp_path):
    prepared = train.run(tiny.config("patches"), tmp_path / "patches", quiet=True)
    assert prepared["rounds"] == 1 and prepared["final_accuracy"] is None
    config = tiny.config("patches+ridge", **ONE)
    alone = train.run(config, tmp_path / "alone", quiet=True)
    after = train.run(config, tmp_path / "after", warm_start=tmp_path / "patches", quiet=True)
    for name in ("pivot_accuracy", "final_accuracy", "phases", "low_uplink_bytes", "uplink_bytes"):
        assert after[name] == alone[name]
    assert after["final_accuracy"] == after["phases"][-1]["test_accuracy"] > 0.3


@pytest.mark.parametrize(
    "name, changes, words",
    (
        ("ridge", {"ridge__sketch": 65}, "config.ridge.sketch=65 is more than"),
        ("ridge", {"data__val_fraction": 0.0}, "config.data.val_fraction leaves none"),
        (
            "gaussian_head",
            {"gaussian_head__encoding": "int4", "gaussian_head__sketch": 3},
            "config.gaussian_head.encoding='int4' packs two",
        ),
        ("patches", {"model__name": "mlp"}, "set config.model.name='patches'"),
        ("ridge", {"ridge__penalties": (0.1, -1.0)}, "one number or more, none below 0"),
    ),
)
def test_bad_settings_are_one_line(name, changes, words):
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")) as caught:
        tiny.build(name, **changes)
    assert "\n" not in str(caught.value)
