"""A zeroth-order round can be rebuilt from keys and scalars alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from zo_fl.round import RoundRecord


@pytest.mark.parametrize("seed_policy", ("per_client", "shared"))
@pytest.mark.parametrize("devices", (1, 8))
def test_keys_and_scalars_give_the_server_s_parameters_bit_for_bit(seed_policy, devices):
    built = tiny.build("zo", zo__seed_policy=seed_policy, run__num_devices=devices)
    (phase,) = built.phases
    before = tiny.start(built, phase)
    after, _, record = jax.jit(phase.algorithm.round)(before, built.data, built.run_key)
    # What travels, as bytes through a file would: no array of the model's size is among it.
    sent = jax.tree.map(np.array, record)
    assert sum(leaf.size for leaf in jax.tree.leaves(sent)) < 100
    params, _ = jax.jit(phase.algorithm.apply)(before, sent, built.run_key)
    chex.assert_trees_all_equal(params, after.params)


def test_a_whole_phase_replays_from_its_records():
    built = tiny.build("zo", zo__server=tiny.config()["zo"]["server"] | {"name": "adam"})
    (phase,) = built.phases
    state = first = tiny.start(built, phase)
    step, apply = jax.jit(phase.algorithm.round), jax.jit(phase.algorithm.apply)
    records = []
    for _ in range(4):
        state, _, record = step(state, built.data, built.run_key)
        records.append(record)
    follower = first
    for record in records:
        params, opt_state = apply(follower, record, built.run_key)
        follower = follower._replace(
            params=params, opt_state=opt_state, round_idx=follower.round_idx + 1
        )
    chex.assert_trees_all_equal(follower.params, state.params)


def test_another_key_or_another_scalar_gives_other_parameters():
    built = tiny.build("zo")
    (phase,) = built.phases
    before = tiny.start(built, phase)
    after, _, record = jax.jit(phase.algorithm.round)(before, built.data, built.run_key)
    apply = jax.jit(phase.algorithm.apply)
    other_key, _ = apply(before, record, jax.random.fold_in(built.run_key, 1))
    changed = RoundRecord(record.cohort, record.messages.at[0, 0].add(1e-3), record.weights)
    other_scalar, _ = apply(before, changed, built.run_key)
    for params in (other_key, other_scalar):
        difference = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), params, after.params)
        assert max(jax.tree.leaves(difference)) > 1e-6
