"""Norms and pooling against flax's."""

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
    ours, flaxs = GroupNorm(num_groups), nn.GroupNorm(num_groups, epsilon=1e-5)
    params = _perturbed(ours.init(jax.random.key(0), X))
    assert jnp.allclose(ours.apply(params, X), flaxs.apply(params, X), atol=1e-5)
    ours, flaxs = jax.grad(_loss(ours), (0, 1)), jax.grad(_loss(flaxs), (0, 1))
    for a, b in zip(
        jax.tree.leaves(ours(params, X)), jax.tree.leaves(flaxs(params, X)), strict=True
    ):
        assert jnp.allclose(a, b, atol=1e-3)


def test_group_norm_of_channels_that_do_not_split_is_an_error():
    with pytest.raises(ValueError, match="8 channels"):
        GroupNorm(3).init(jax.random.key(0), X)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("mask", [None, np.array([True, False, True, True])])
def test_batch_norm_equals_flaxs_in_value_gradient_and_statistics(train, mask):
    ours = BatchNorm()
    flaxs = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)
    flax_mask = None if mask is None else mask[:, None, None, None]
    variables = _perturbed(ours.init(jax.random.key(0), X, train=False))
    variables = {**variables, "batch_stats": jax.tree.map(jnp.abs, variables["batch_stats"])}
    a, new_a = ours.apply(variables, X, train=train, mask=mask, mutable=["batch_stats"])
    b, new_b = flaxs.apply(variables, X, mask=flax_mask, mutable=["batch_stats"])
    assert jnp.allclose(a, b, atol=1e-4)
    for name in ("mean", "var"):
        assert jnp.allclose(new_a["batch_stats"][name], new_b["batch_stats"][name], atol=1e-4)


def test_group_norm_of_an_example_does_not_depend_on_the_others():
    module = GroupNorm()
    params = module.init(jax.random.key(0), X)
    assert jnp.allclose(module.apply(params, X)[:2], module.apply(params, X[:2]), atol=1e-6)


@pytest.mark.parametrize("size", [(6, 6), (7, 5)])
def test_max_pool_equals_flaxs_in_value_and_gradient(size):
    x = jax.random.normal(jax.random.key(0), (2, *size, 3))

    def loss(pool):
        return lambda x: jnp.sum(jnp.sin(pool(x)))

    def flaxs(x):
        return nn.max_pool(x, (2, 2), (2, 2))

    assert jnp.array_equal(max_pool(x), flaxs(x))
    assert jnp.allclose(jax.grad(loss(max_pool))(x), jax.grad(loss(flaxs))(x))
    in_scan = jax.lax.scan(lambda c, _: (c, jax.grad(loss(max_pool))(x)), 0, length=2)[1]
    assert jnp.allclose(in_scan[1], jax.grad(loss(flaxs))(x))


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
