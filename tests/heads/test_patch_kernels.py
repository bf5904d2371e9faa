"""The kernels of image patches: whitened, and from the high tier alone."""

import jax
import numpy as np
import pytest

from tests import tiny
from tests.heads.problems import after, build, high_tier, one_round, rounds
from zo_fl.engine.fields import ConfigError

pytestmark = pytest.mark.slow


def test_kernels_are_whitened_units_of_the_high_tier_alone():
    built = build("patches", data={"alpha": 100.0})
    moments, sweeps = built.phases
    found = one_round(built, moments)
    data, high = built.federation.clients, high_tier(built)
    for phase in built.phases:
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
    for state in (found, one_round(built, sweeps, after(sweeps, found))):
        kernel = np.float64(state.params["filters"]["kernel"]).reshape(-1, count)
        units = np.linalg.solve(whitening, kernel).T
        np.testing.assert_allclose(np.linalg.norm(units, axis=1), 1, atol=1e-3)
        bias = -mean @ kernel
        np.testing.assert_allclose(state.params["filters"]["bias"], bias, atol=1e-4)


def test_sweeps_move_kernels_nearer_to_patches_and_no_pixel_is_sent():
    built = build("patches", data={"alpha": 100.0})
    moments, sweeps = built.phases
    state = after(sweeps, one_round(built, moments))
    given = tiny.batch_of(built, high_tier(built)[0]), tiny.own_keys(built, 0)
    dim, count = state.strategy_state.units.shape
    packed = dim * (dim + 1) // 2
    for phase, sent in ((moments, [(), (dim,), (packed,)]), (sweeps, [(count,), (dim, count)])):
        update = tiny.only_client(phase).update
        message = jax.eval_shape(update, tiny.start(built, phase), *given).message
        assert sorted(leaf.shape for leaf in jax.tree.leaves(message)) == sorted(sent)
    client, states = tiny.only_client(sweeps), [state, *rounds(built, sweeps, 3, state)]
    update = jax.jit(lambda state: client.update(state, *given).message)
    lengths = []
    for one in states:
        sums, counts = update(one)
        lengths.append(np.sum(np.asarray(sums) * one.strategy_state.units) / counts.sum())
        np.testing.assert_allclose(np.linalg.norm(one.strategy_state.units, axis=0), 1, atol=1e-4)
    assert lengths == sorted(lengths) and lengths[-1] > 1.1 * lengths[0]
    space, kernel = states[-1].strategy_state, states[-1].params["filters"]["kernel"]
    expected = np.float64(space.whitening) @ np.float64(space.units)
    np.testing.assert_allclose(np.reshape(kernel, expected.shape), expected, atol=1e-4)


def test_a_model_without_patches_is_refused():
    with pytest.raises(ConfigError, match=r"set config\.model\.name='patches'"):
        build("patches", model={"name": "mlp"})
