"""Cohorts drawn from keys, and the order of a client's mini-batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zo_fl.engine import cohorts, keys
from zo_fl.engine.fields import ConfigError, in_block

TIERS = np.array([0, 1, 0, 0, 1, 0, 0, 0, 1, 0], np.int32)
EVERYONE = np.arange(10, dtype=np.int32)

epoch_order = jax.jit(cohorts.epoch_order, static_argnums=2)


def _cohorts(sample, count):
    """Returns the cohorts of many rounds, stacked."""
    one = lambda r: sample(keys.round_key(keys.run_key(0), r))  # noqa: E731
    # Mapped one by one, because the compiler takes three times as long where they are vectorized.
    return jax.device_get(jax.jit(lambda: jax.lax.map(one, np.arange(count)))())


def test_cohort_size_0_is_everyone_eligible_in_order():
    eligible = np.array([7, 2, 5], np.int32)
    for participation in cohorts.PARTICIPATION:
        drawn = cohorts.make_sampler(eligible, 0, TIERS, participation)(keys.run_key(0))
        np.testing.assert_array_equal(drawn.client_ids, [2, 5, 7])
        assert drawn.valid.all()


def test_a_cohort_is_sorted_eligible_and_without_repetition_and_uniform_among_clients():
    eligible = np.array([9, 0, 4, 7, 2, 5], np.int32)
    drawn = _cohorts(cohorts.make_sampler(eligible, 3, TIERS, "uniform"), 2000)
    assert drawn.client_ids.dtype == np.int32 and drawn.client_ids.shape == (2000, 3)
    assert drawn.valid.all() and (np.diff(drawn.client_ids) > 0).all()
    ids, counts = np.unique(drawn.client_ids, return_counts=True)
    np.testing.assert_array_equal(ids, np.sort(eligible))
    np.testing.assert_allclose(counts / 2000, 0.5, atol=0.06)


def test_a_large_population_is_drawn_from_in_the_time_of_the_cohort_and_uniformly():
    sample = cohorts.make_sampler(np.arange(cohorts.LARGE, dtype=np.int32), 200, TIERS, "uniform")
    traced = jax.make_jaxpr(sample)(keys.run_key(0))
    sizes = [out.aval.size for equation in traced.eqns for out in equation.outvars]
    assert max(sizes) < 1000
    ids = _cohorts(sample, 2000).client_ids
    assert (np.diff(ids) > 0).all() and ids.min() >= 0 and ids.max() < cohorts.LARGE
    share = np.histogram(ids, bins=16, range=(0, cohorts.LARGE))[0] / ids.size
    np.testing.assert_allclose(share, 1 / 16, atol=0.002)


def test_distinct_numbers_come_in_every_order_equally_often():
    one = lambda r: cohorts.distinct(keys.round_key(keys.run_key(0), r), 2, 8)  # noqa: E731
    pairs = jax.jit(lambda: jax.lax.map(one, np.arange(8000)))()
    found, counts = np.unique(np.asarray(pairs), axis=0, return_counts=True)
    assert len(found) == 8 * 7
    np.testing.assert_allclose(counts / 8000, 1 / 56, atol=0.008)


def test_stratified_gives_each_tier_its_share_and_each_client_of_a_tier_the_same():
    drawn = _cohorts(cohorts.make_sampler(EVERYONE, 6, TIERS, "stratified"), 2000)
    assert (TIERS[drawn.client_ids].sum(axis=1) == 2).all()
    assert (np.diff(drawn.client_ids) > 0).all()
    share = np.bincount(drawn.client_ids.ravel(), minlength=10) / 2000
    np.testing.assert_allclose(share, np.where(TIERS == 1, 2 / 3, 4 / 7), atol=0.06)


@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=4), data=st.data())
def test_largest_remainder_gives_out_every_place_and_nobody_more_than_there_are(sizes, data):
    if not sum(sizes):
        return
    total = data.draw(st.integers(0, sum(sizes)))
    counts = cohorts.largest_remainder(total, sizes)
    assert sum(counts) == total
    for count, size in zip(counts, sizes, strict=True):
        assert count <= size and abs(count - total * size / sum(sizes)) < 1


def test_largest_remainder_known_answers():
    assert cohorts.largest_remainder(10, [5, 45]) == [1, 9]
    assert cohorts.largest_remainder(5, [5, 45]) == [1, 4], "a tie goes to the first group"
    assert cohorts.largest_remainder(3, [5, 45]) == [0, 3]


def test_a_cohort_larger_than_the_eligible_clients_names_the_last_block_that_has_the_field():
    blocks = {"zo": {"cohort_size": 4}, "mezo": {"cohort_size": 4}, "decomfl": {"lr": 0.1}}
    with pytest.raises(ConfigError, match=r"config\.mezo\.cohort_size=.* 1 to 3 .*, or all"):
        with in_block(blocks):
            cohorts.make_sampler(EVERYONE[:3], 4, TIERS, "uniform")


def test_nobody_eligible_is_an_error():
    with pytest.raises(ConfigError, match="no client is eligible"):
        cohorts.make_sampler(EVERYONE[:0], 0, TIERS, "uniform")


@settings(max_examples=20, deadline=None)
@given(
    mask=st.lists(st.booleans(), min_size=12, max_size=12),
    batch_size=st.sampled_from([1, 5, 16]),
    seed=st.integers(0, 99),
)
def test_an_epoch_holds_each_real_example_once_and_then_padding(mask, batch_size, seed):
    order, real = epoch_order(keys.run_key(seed), jnp.array(mask), batch_size)
    assert order.shape == real.shape == (-(-len(mask) // batch_size), batch_size)
    assert order.dtype == jnp.int32 and real.dtype == jnp.bool_
    flat, flags = np.asarray(order).ravel(), np.asarray(real).ravel()
    np.testing.assert_array_equal(np.sort(flat[flags]), np.flatnonzero(mask))
    assert (np.diff(flags.astype(int)) <= 0).all(), "real examples come first"
    assert flat.min() >= 0 and flat.max() < len(mask)


def test_every_order_is_equally_likely():
    mask = jnp.array([True, True, False, True])
    one = lambda seed: cohorts.epoch_order(keys.run_key(seed), mask, 4)[0]  # noqa: E731
    order = jax.jit(jax.vmap(one))(np.arange(3000))
    orders, counts = np.unique(np.asarray(order)[:, 0, :3], axis=0, return_counts=True)
    assert len(orders) == 6
    np.testing.assert_allclose(counts / 3000, 1 / 6, atol=0.04)


def test_a_batch_size_far_above_a_client_s_examples_takes_no_memory():
    mask, key = jnp.arange(10) < 8, jax.random.key(0)
    rows, real = cohorts.epoch_order(key, mask, 10**9)
    few, _ = cohorts.epoch_order(key, mask, 64)
    assert rows.shape == real.shape == (1, 1024) and few.shape == (1, 64)
    np.testing.assert_array_equal(rows[:, :10], few[:, :10])
