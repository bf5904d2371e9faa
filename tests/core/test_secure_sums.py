"""Secure aggregation: where the server needs sums only, masks that cancel change no bit of them.

Each pair of clients adds and subtracts the same random numbers, in integers modulo 2^32: a single
message tells nothing, their sum everything (Bonawitz et al. 2017).
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from zo_fl.methods import ALGORITHMS

CLIENTS = 8
READ_SINGLY = {"zo", "fedkseed", "fedkseed_pro", "mezo", "mixed_tiers"}


def contributions(built, phase, state):
    """Returns what each client adds to the sum, leaves ``f32[C, ...]`` in units of integers."""
    parts = []
    for group in phase.groups:
        ids = np.asarray(group.sample_cohort(built.run_key).client_ids)

        def one(batch, strategy=group.strategy):
            sent = strategy.client_update(state, batch, built.run_key)
            update = strategy.decode(sent.message, batch.client_id, state, built.run_key)
            counts = sent.weight if phase.aggregation.reduce == "mean" else sent.weight > 0
            return jax.tree.map(lambda leaf: jnp.where(sent.weight > 0, counts * leaf, 0), update)

        parts.append(jax.jit(jax.vmap(one))(tiny.gather(built, ids)))
    return jax.device_get(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts))


def quantized(leaf):
    """Fixed point of 20 bits, so that eight of them do not overflow."""
    unit = np.abs(leaf).max() / 2**20 or 1.0
    return np.round(leaf / unit).astype(np.int64).astype(np.uint32), unit


def masked(messages):
    """Returns messages ``u32[C, ...]`` with a mask for each pair of clients."""
    out = messages.copy()
    for i, j in itertools.combinations(range(len(messages)), 2):
        pair = np.random.default_rng((7, i, j))  # only these two know the seed
        mask = pair.integers(2**32, size=messages.shape[1:], dtype=np.uint32)
        out[i] += mask
        out[j] -= mask
    return out


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_masks_leave_sums_as_they_are_to_the_bit(algorithm):
    built = tiny.build(algorithm)
    phases = [phase for phase in built.phases if not phase.continues]
    assert {phase.sums_suffice for phase in phases} == {algorithm not in READ_SINGLY}
    for phase in phases:
        if not phase.sums_suffice:
            continue
        state = tiny.start(built, phase)
        for leaf in jax.tree.leaves(contributions(built, phase, state)):
            plain, unit = quantized(leaf)
            hidden = masked(plain)
            total = hidden.sum(axis=0, dtype=np.uint32)
            np.testing.assert_array_equal(total, plain.sum(axis=0, dtype=np.uint32))
            # What the server makes of it is the sum of the round, to the fixed point's rounding.
            exact = leaf.astype(np.float64).sum(axis=0)
            np.testing.assert_allclose(total.astype(np.int32) * unit, exact, atol=5 * unit)
            if len(plain) > 1:
                assert (hidden[0] != plain[0]).mean() > 0.9


def test_scalars_need_to_be_read_singly_unless_their_directions_are_shared():
    (own,) = tiny.build("zo").phases
    (shared,) = tiny.build("zo", zo__seed_policy="shared").phases
    assert not own.sums_suffice and shared.sums_suffice


@pytest.mark.parametrize("rule", ("median", "trimmed_mean", "clip"))
def test_rules_that_judge_messages_need_them(rule):
    (phase,) = tiny.build("fedavg", robust__rule=rule).phases
    assert not phase.sums_suffice
