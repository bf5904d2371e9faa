"""Whitening and kernels of the network: the formulas, and sums of the high tier alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zo_fl
from tests import tiny
from tests.heads.problems import high_tier, one_round, rounds, seen
from tests.heads.test_sum_heads import assert_pooled
from zo_fl import config as configs
from zo_fl import experiment
from zo_fl.engine.fields import ConfigError
from zo_fl.heads import spherical_means
from zo_fl.heads.spherical_means import Assigned
from zo_fl.models import kernel_network as model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built():
    return of_small_images("patches")


def of_small_images(algorithm, **changes):
    rng, labels = np.random.default_rng(0), np.arange(80, dtype=np.int32) % 10
    images = rng.normal(size=(80, 12, 11, 2)).cumsum(1).astype(np.float32)
    dataset = zo_fl.dataset(images, labels, images, labels)
    shared = dict(model__name="patches", model__network=4, data__num_clients=4, data__alpha=100.0)
    config = tiny.config(algorithm, **shared, **changes)
    return experiment.build(configs.resolve(config), dataset)


def images_of(built, clients):
    data = built.federation.clients
    rows = np.concatenate([data.client_indices[j, : data.client_sizes[j]] for j in clients])
    return np.asarray(built.task.inputs({"image": data.examples["image"][rows]}), np.float64)


def test_the_high_tier_s_windows_are_whitened_at_their_middle(built):
    phase = built.phases[2]
    assert set(phase.groups[0].eligible) == set(high_tier(built))
    after = one_round(built, phase).params["network"]["whitening"]
    x = images_of(built, high_tier(built))
    windows = np.lib.stride_tricks.sliding_window_view(x, (9, 9), axis=(1, 2))
    seen = np.moveaxis(windows, 3, 5).reshape(-1, 81 * x.shape[-1])
    values, vectors = np.linalg.eigh(np.cov(seen.T, bias=True))
    whitening = vectors @ np.diag((values + 0.01) ** -0.5) @ vectors.T
    kernel = whitening[:, 40 * x.shape[-1] : 41 * x.shape[-1]]
    np.testing.assert_allclose(after["kernel"], kernel, atol=2e-3)
    np.testing.assert_allclose(after["bias"], -seen.mean(0) @ kernel, atol=2e-3)


def test_the_second_layer_looks_along_the_largest_second_moments(built):
    phase = built.phases[4]
    before = tiny.start(built, phase)
    (after,) = rounds(built, phase, 1, before)
    images = jnp.float32(images_of(built, high_tier(built)))
    windows = model.seen_by("directions", before.params["network"], images)
    windows = np.asarray(windows, np.float64).reshape(-1, windows.shape[-1])
    values, vectors = np.linalg.eigh(windows.T @ windows)
    found = np.asarray(after.params["network"]["directions"]["kernel"], np.float64)
    assert found.shape == (windows.shape[1], 128)
    np.testing.assert_allclose(found.T @ found, np.eye(128), atol=1e-4)
    kept = np.square(windows @ found).sum() / values.sum()
    assert kept == pytest.approx(values[-128:].sum() / values.sum(), abs=1e-5)
    first = np.abs(vectors[:, -5:].T @ found[:, -5:])  # the largest are apart, so they are known
    np.testing.assert_allclose(first, np.eye(5), atol=5e-3)


def test_a_client_sends_sums_of_its_windows_by_nearest_kernel(built):
    """All windows are as long as 1, so that sums are at most counts; and each is counted once."""
    phase = built.phases[5]
    state = tiny.start(built, phase)
    batch, client = tiny.batch_of(built, high_tier(built)[0]), tiny.only_client(phase)
    own = tiny.own_keys(built, batch.client_id)
    sent = jax.jit(client.update)(state, batch, own).message
    kernel = state.params["network"]["layer2"]["kernel"]
    assert sent.sums.shape == kernel.shape
    assert sent.counts.sum() == batch.mask.sum() * 24
    assert np.all(np.linalg.norm(sent.sums, axis=0) <= np.asarray(sent.counts) * (1 + 1e-3))
    # What a kernel has taken is nearer to it than what the others have taken, on the whole.
    cosines = np.asarray(sent.sums.T @ kernel)
    taken = np.asarray(sent.counts) > 0
    assert np.all(cosines[taken].argmax(1) == np.flatnonzero(taken))


def test_sweeps_find_clusters_and_leave_no_kernel_without_windows():
    rng = np.random.default_rng(0)
    middles = rng.normal(size=(6, 20))
    points = np.repeat(middles, 50, axis=0) + 0.1 * rng.normal(size=(300, 20))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    kernel = model.unit_columns(jnp.asarray(np.abs(rng.normal(size=(20, 6))), jnp.float32))
    for sweep in range(12):
        chosen = np.eye(6)[np.argmax(points @ np.asarray(kernel), axis=1)]
        found = Assigned(jnp.float32(points.T @ chosen), jnp.float32(chosen.sum(0)))
        kernel = spherical_means.moved(found, kernel, jax.random.key(sweep))
    assert np.all(chosen.sum(0) > 0)
    assert (points @ np.asarray(kernel)).max(1).mean() > 0.9


def test_after_the_last_sweep_mixed_responses_have_the_kernel_s_products(built):
    phase = built.phases[3]
    before, after = rounds(built, phase, phase.num_rounds)[-2:]
    first, last = (state.params["network"]["layer1"] for state in (before, after))
    kernel = np.asarray(last["kernel"], np.float64)
    of_each_other = np.exp((kernel.T @ kernel - 1) / 0.36)
    seen = of_each_other @ last["mix"]  # the kernels' own responses
    np.testing.assert_allclose(seen @ seen.T, of_each_other, atol=5e-3)
    assert np.abs(first["mix"] - last["mix"]).max() > 0.1 and before.strategy_state == 1


@pytest.mark.nightly
def test_the_head_of_both_kinds_of_features_is_the_ridge_of_pooled_data():
    changes = dict(ridge__penalties=(0.5,), ridge__calibrate=False, model__kernels=4)
    built = of_small_images("ridge", **changes)
    state = one_round(built, *built.phases)
    h, _ = seen(built, state, range(4))
    assert h.shape[1] == 4 * 8 + 4 * 9
    images = jnp.float32(images_of(built, range(4)))
    network = model.KernelNetwork(4).apply({"params": state.params["network"]}, images)
    np.testing.assert_allclose(h[:, 32:], network, rtol=1e-4, atol=1e-4)
    assert_pooled(built, state.params, range(4), penalty=0.5, tolerance=5e-5)


def test_images_smaller_than_a_window_are_refused():
    with pytest.raises(ConfigError, match="9x9 pixels or more, and these have 8x8"):
        tiny.build("patches", model__network=4)
