"""Norms and pooling against flax's."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zo_fl.models.layers import BatchNorm, GroupNorm, max_pool

pytestmark = pytest.mark.slow

# NumPy is fast on import, which every worker of the tests does.
X = np.float32(np.random.default_rng(0).normal(3, 2, (4, 6, 5, 8)))
MASK = np.array([True, False, True, True])


def _perturbed(params):
    key = jax.random.key(1)
    return jax.tree.map(lambda leaf: leaf + jax.random.normal(key, leaf.shape), params)


def _batch_norm():
    """A module, and variables of it whose variances are positive."""
    module = BatchNorm()
    variables = _perturbed(module.init(jax.random.key(0), X, train=False))
    return module, variables | {"batch_stats": jax.tree.map(jnp.abs, variables["batch_stats"])}


def test_group_norm_equals_flaxs_in_value_and_gradient():
    modules = GroupNorm(2), nn.GroupNorm(2, epsilon=1e-5)
    params = _perturbed(modules[0].init(jax.random.key(0), X))

    @jax.jit
    def both(params, x):
        losses = [lambda params, x, m=m: jnp.sin(m.apply(params, x)).sum() for m in modules]
        gradients = [jax.grad(loss, (0, 1))(params, x) for loss in losses]
        return [m.apply(params, x) for m in modules], gradients

    (ours, flaxs), (our_gradient, flaxs_gradient) = both(params, X)
    np.testing.assert_allclose(ours, flaxs, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(our_gradient, flaxs_gradient, rtol=1e-5, atol=1e-3)


def test_group_norm_of_channels_that_do_not_split_is_an_error():
    with pytest.raises(ValueError, match="8 channels"):
        GroupNorm(3).init(jax.random.key(0), X)


@pytest.mark.parametrize(
    ("train", "mask", "backend"),  # by products on a CPU, by sums elsewhere
    [(True, None, "cpu"), (True, MASK, "cpu"), (True, MASK, "gpu"), (False, MASK, "cpu")],
)
def test_batch_norm_equals_flaxs_in_value_and_statistics(train, mask, backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    ours, variables = _batch_norm()
    flaxs = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)
    flax_mask = None if mask is None else mask[:, None, None, None]

    @jax.jit
    def both(variables, x):
        kept = {"mutable": ["batch_stats"]}
        return (
            ours.apply(variables, x, train=train, mask=mask, **kept),
            flaxs.apply(variables, x, mask=flax_mask, **kept),
            ours.apply(variables, x, train=train, mask=mask),
        )

    (a, new_a), (b, new_b), a_without_new_statistics = both(variables, X)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(a, a_without_new_statistics)
    for name in ("mean", "var"):
        new = (new_a["batch_stats"][name], new_b["batch_stats"][name])
        np.testing.assert_allclose(*new, rtol=1e-5, atol=1e-4)


def test_a_batch_without_examples_is_normalized_by_the_running_statistics_and_keeps_them():
    module, variables = _batch_norm()
    nobody, kept = np.zeros(4, bool), ["batch_stats"]

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(variables):
        y, new = module.apply(variables, X, train=True, mask=nobody, mutable=kept)
        return y.sum(), (y, new["batch_stats"])

    gradients, (y, statistics) = gradient(variables)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    np.testing.assert_allclose(y, module.apply(variables, X, train=False), rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(statistics, variables["batch_stats"], rtol=1e-6)


def test_batch_norms_variance_is_as_exact_as_float32_for_many_pixels():
    x = np.random.default_rng(0).normal(0.3, 1.0, (64, 32, 32, 8)).astype(np.float32)
    module = BatchNorm()
    variables = module.init(jax.random.key(0), x, train=False)
    _, new = module.apply(variables, x, train=True, mutable=["batch_stats"])
    expected = 0.9 + 0.1 * x.astype(np.float64).var((0, 1, 2))
    np.testing.assert_allclose(new["batch_stats"]["var"], expected, rtol=3e-7)


def value_and_gradient(pool, x):
    def loss(x):
        y = pool(x)
        return jnp.sum(jnp.sin(y)), y

    (_, y), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(x)
    return y, gradient


def test_max_pool_equals_flaxs_in_value_and_gradient():
    x = X[:, :, :, :3]  # six rows, five columns
    ours = value_and_gradient(max_pool, x)
    flaxs = value_and_gradient(lambda x: nn.max_pool(x, (2, 2), (2, 2)), x)
    np.testing.assert_array_equal(ours[0], flaxs[0])
    np.testing.assert_allclose(ours[1], flaxs[1], rtol=1e-5)


def test_tied_maxima_share_the_gradient():
    _, gradient = value_and_gradient(max_pool, np.zeros((1, 2, 2, 1), np.float32))
    np.testing.assert_array_equal(gradient, np.full((1, 2, 2, 1), 0.25))
