"""The kernels of image patches: whitened, and from the high tier alone."""

import jax
import numpy as np
import pytest

from tests import tiny
from tests.heads.problems import after, build, high_tier, one_round, rounds
from zo_fl.engine.fields import ConfigError

pytestmark = pytest.mark.slow


def test_patches_whiten_and_only_the_high_tier_is_asked():
    built = build("patches", data={"alpha": 100.0})
    (phase,) = built.phases
    found = one_round(built, phase)
    data, high = built.federation.clients, high_tier(built)
    assert set(phase.groups[0].eligible) == set(high)
    kernel = np.asarray(found.params["filters"]["kernel"], np.float64)
    size, _, channels, count = kernel.shape
    rows = np.concatenate([data.client_indices[j, : data.client_sizes[j]] for j in high])
    x = np.asarray(built.task.inputs({"image": data.examples["image"][rows]}))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    seen = np.moveaxis(windows, 3, 5).reshape(-1, size * size * channels).astype(np.float64)
    mean, covariance = seen.mean(0), np.cov(seen.T, bias=True)
    w, v = np.linalg.eigh(covariance)
    whitening = v @ np.diag((w + 0.1) ** -0.5) @ v.T
    # A kernel is the whitening of a unit vector that itself is a whitened patch.
    units = np.linalg.solve(whitening, kernel.reshape(-1, count)).T
    np.testing.assert_allclose(np.linalg.norm(units, axis=1), 1, atol=1e-3)
    white = (seen - mean) @ whitening
    white /= np.linalg.norm(white, axis=1, keepdims=True)
    for unit in units:
        assert np.max(white @ unit) > 1 - 1e-4
    bias = -mean @ kernel.reshape(-1, count)
    np.testing.assert_allclose(found.params["filters"]["bias"], bias, atol=1e-4)


def test_means_are_near_what_a_sweep_finds_and_no_pixel_is_sent():
    built = build("patches", kernels="means", data={"alpha": 100.0})
    draws, sweeps = built.phases
    state = after(sweeps, one_round(built, draws))
    given = tiny.batch_of(built, high_tier(built)[0]), tiny.own_keys(built, 0)
    sent = jax.eval_shape(tiny.only_client(draws).update, tiny.start(built, draws), *given).message
    assert sent[-1].size == 0
    client, states = tiny.only_client(sweeps), [state, *rounds(built, sweeps, 3, state)]
    update = jax.jit(lambda state: client.update(state, *given).message)
    lengths = []
    for one in states:
        sums, counts = update(one)
        lengths.append(np.sum(np.asarray(sums) * one.strategy_state.units) / counts.sum())
        np.testing.assert_allclose(np.linalg.norm(one.strategy_state.units, axis=0), 1, atol=1e-4)
    assert lengths == sorted(lengths) and lengths[-1] > 1.1 * lengths[0]  # windows are nearer
    space, kernel = states[-1].strategy_state, states[-1].params["filters"]["kernel"]
    expected = np.float64(space.whitening) @ np.float64(space.units)
    np.testing.assert_allclose(np.reshape(kernel, expected.shape), expected, atol=1e-4)


def test_a_model_without_patches_is_refused():
    with pytest.raises(ConfigError, match=r"set config\.model\.name='patches'"):
        build("patches", model={"name": "mlp"})
