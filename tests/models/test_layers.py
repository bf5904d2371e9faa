"""Norms and pooling against flax's."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from zo_fl.models.layers import BatchNorm, GroupNorm, max_pool, mean_pool

pytestmark = pytest.mark.slow

# Of NumPy: what is made on import, every worker of the tests makes.
X = np.float32(np.random.default_rng(0).normal(3, 2, (4, 6, 5, 8)))


def _perturbed(params):
    key = jax.random.key(1)
    return jax.tree.map(lambda leaf: leaf + jax.random.normal(key, leaf.shape), params)


def _loss(module, **kwargs):
    return lambda params, x: jnp.sum(jnp.sin(module.apply(params, x, **kwargs)))


@pytest.mark.parametrize("num_groups", [2, 8])
def test_group_norm_equals_flaxs_in_value_and_gradient(num_groups):
    modules = GroupNorm(num_groups), nn.GroupNorm(num_groups, epsilon=1e-5)
    params = _perturbed(modules[0].init(jax.random.key(0), X))

    @jax.jit
    def both(params, x):
        return [(m.apply(params, x), jax.grad(_loss(m), (0, 1))(params, x)) for m in modules]

    (ours, our_gradient), (flaxs, flaxs_gradient) = both(params, X)
    np.testing.assert_allclose(ours, flaxs, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(our_gradient, flaxs_gradient, rtol=1e-5, atol=1e-3)


def test_group_norm_of_channels_that_do_not_split_is_an_error():
    with pytest.raises(ValueError, match="8 channels"):
        GroupNorm(3).init(jax.random.key(0), X)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("mask", [None, np.array([True, False, True, True])])
@pytest.mark.parametrize("backend", ["cpu", "gpu"])  # by products, by sums
def test_batch_norm_equals_flaxs_in_value_gradient_and_statistics(
    train, mask, backend, monkeypatch
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    ours = BatchNorm()
    flaxs = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)
    flax_mask = None if mask is None else mask[:, None, None, None]
    variables = _perturbed(ours.init(jax.random.key(0), X, train=False))
    variables = {**variables, "batch_stats": jax.tree.map(jnp.abs, variables["batch_stats"])}

    @jax.jit
    def both(variables, x):
        kept = {"mutable": ["batch_stats"]}
        return (
            ours.apply(variables, x, train=train, mask=mask, **kept),
            flaxs.apply(variables, x, mask=flax_mask, **kept),
        )

    (a, new_a), (b, new_b) = both(variables, X)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)
    for name in ("mean", "var"):
        new = (new_a["batch_stats"][name], new_b["batch_stats"][name])
        np.testing.assert_allclose(*new, rtol=1e-5, atol=1e-4)


def test_batch_norms_variance_is_as_exact_as_float32_for_many_pixels():
    x = np.random.default_rng(0).normal(0.3, 1.0, (64, 32, 32, 8)).astype(np.float32)
    module = BatchNorm()
    variables = module.init(jax.random.key(0), x, train=False)
    _, new = module.apply(variables, x, train=True, mutable=["batch_stats"])
    expected = 0.9 + 0.1 * x.astype(np.float64).var((0, 1, 2))
    np.testing.assert_allclose(new["batch_stats"]["var"], expected, rtol=3e-7)


def test_group_norm_of_an_example_does_not_depend_on_the_others():
    module = GroupNorm()
    params = module.init(jax.random.key(0), X)
    whole, part = jax.jit(lambda x: (module.apply(params, x), module.apply(params, x[:2])))(X)
    np.testing.assert_allclose(whole[:2], part, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(6, 6), (7, 5)])
def test_max_pool_equals_flaxs_in_value_and_gradient(size):
    x = jax.random.normal(jax.random.key(0), (2, *size, 3))

    def loss(pool):
        return lambda x: jnp.sum(jnp.sin(pool(x)))

    def flaxs(x):
        return nn.max_pool(x, (2, 2), (2, 2))

    @jax.jit
    def both(x):
        in_scan = jax.lax.scan(lambda c, _: (c, jax.grad(loss(max_pool))(x)), 0, length=2)[1]
        gradients = [jax.grad(loss(pool))(x) for pool in (max_pool, flaxs)]
        return max_pool(x), flaxs(x), *gradients, in_scan[1]

    ours, theirs, gradient, expected, in_scan = both(x)
    assert jnp.array_equal(ours, theirs)
    assert np.allclose(gradient, expected) and np.allclose(in_scan, expected)


def test_tied_maxima_share_the_gradient():
    gradient = jax.grad(lambda x: max_pool(x).sum())(jnp.zeros((1, 2, 2, 1)))
    assert jnp.array_equal(gradient, jnp.full((1, 2, 2, 1), 0.25))


def test_mean_pool_is_the_mean_over_space():
    assert jnp.allclose(mean_pool(X), X.mean((1, 2)))


@pytest.mark.slow
def test_training_does_not_depend_on_how_much_the_compiler_optimizes():
    built = tiny.build("fedavg", model__name="cnn", model__norm="group")
    (phase,) = built.phases
    norms = []
    for level in (0, 3):
        # With the emitters that users have: those of the other tests compute the pool's input twice
        # at level 0, rounded otherwise, and a few windows then have no maximum.
        options = {"xla_backend_optimization_level": level, "xla_cpu_use_fusion_emitters": True}
        options["xla_llvm_disable_expensive_passes"] = level == 0
        step = jax.jit(tiny.algorithm(built, phase).round, compiler_options=options)
        metrics = step(tiny.start(built, phase), built.data_of(phase), built.run_key)[1]
        norms.append(float(metrics["update_norm"]))
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
