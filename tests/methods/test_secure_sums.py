"""Secure aggregation: where a phase says that sums suffice, the server's round follows from them.

What clients send is decoded, weighed and added up here, by NumPy, and handed to the server's step:
no message is read by itself (Bonawitz et al. 2017 hide all but the sum).
"""

import chex
import jax
import numpy as np
import pytest

from tests import tiny
from zo_fl.methods import METHODS


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(METHODS))
def test_where_sums_suffice_the_round_follows_from_the_sum_of_what_clients_send(name):
    built = tiny.build(name)
    phase = built.phases[0]
    if not phase.sums_suffice:
        # Each message is rebuilt along its own client's directions.
        assert any(group.client.replays for group in phase.groups)
        return
    state = tiny.start(built, phase)
    updates, _, weights = tiny.first_updates(built, phase, state)
    is_sum = phase.server.reducer.is_sum
    shares = weights > 0 if is_sum else weights / weights.sum()
    total = jax.tree.map(lambda leaf: np.tensordot(shares, np.float64(leaf), axes=1), updates)
    step = jax.jit(tiny.algorithm(built, phase).round)
    after, *_ = step(state, built.data_of(phase), built.run_key)
    expected = tiny.server_step(built, phase, state, total)
    found = after.params, after.strategy_state
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("algorithm", "overrides", "suffices"),
    (
        ("zo", {}, False),
        ("zo", {"zo__seed_policy": "shared"}, True),
        ("fedavg", {}, True),
        ("fedavg", {"robust__rule": "median"}, False),
        ("fedavg", {"robust__rule": "clip"}, False),
    ),
)
def test_sums_suffice_unless_messages_are_read_or_judged_singly(algorithm, overrides, suffices):
    (phase,) = tiny.build(algorithm, **overrides).phases
    assert phase.sums_suffice == suffices
