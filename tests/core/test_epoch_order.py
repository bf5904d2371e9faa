import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zo_fl.engine import cohorts, keys

epoch_order = jax.jit(cohorts.epoch_order, static_argnums=2)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    size=st.sampled_from([1, 7, 12]),
    drawn=st.lists(st.booleans(), min_size=12, max_size=12),
    batch_size=st.sampled_from([1, 5, 16]),
    seed=st.integers(0, 99),
)
def test_an_epoch_holds_each_real_example_once_and_then_padding(size, drawn, batch_size, seed):
    mask = drawn[:size]
    order, real = epoch_order(keys.run_key(seed), jnp.array(mask), batch_size)
    assert order.shape == real.shape == (-(-len(mask) // batch_size), batch_size)
    assert order.dtype == jnp.int32 and real.dtype == jnp.bool_
    flat, flags = np.asarray(order).ravel(), np.asarray(real).ravel()
    np.testing.assert_array_equal(np.sort(flat[flags]), np.flatnonzero(mask))
    assert (np.diff(flags.astype(int)) <= 0).all(), "real examples come first"
    assert flat.min() >= 0 and flat.max() < len(mask)


def test_batches_that_are_all_padding_have_an_all_false_mask():
    mask = jnp.arange(9) < 3
    _, real = cohorts.epoch_order(keys.run_key(0), mask, 3)
    np.testing.assert_array_equal(real.all(axis=1), [True, False, False])
    assert not real[1:].any()


def test_every_order_is_equally_likely():
    mask = jnp.array([True, True, False, True])
    one = lambda seed: cohorts.epoch_order(keys.run_key(seed), mask, 4)[0]  # noqa: E731
    order = jax.jit(jax.vmap(one))(np.arange(3000))
    orders, counts = np.unique(np.asarray(order)[:, 0, :3], axis=0, return_counts=True)
    assert len(orders) == 6
    np.testing.assert_allclose(counts / 3000, 1 / 6, atol=0.04)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [2, 4])
def test_jit_and_vmap_change_nothing(batch_size):
    masks = jnp.array([[True] * 5, [True, False, True, False, True]])
    two = jax.vmap(keys.run_key)(jnp.arange(2))
    mapped = jax.jit(jax.vmap(lambda key, mask: cohorts.epoch_order(key, mask, batch_size)))(
        two, masks
    )
    for client in range(2):
        alone = cohorts.epoch_order(two[client], masks[client], batch_size)
        jax.tree.map(np.testing.assert_array_equal, tuple(a[client] for a in mapped), alone)
