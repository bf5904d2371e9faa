"""A round can be rebuilt from keys and what clients sent, where their messages are scalars."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny

SHARED = {"zo__seed_policy": "shared", "run__num_devices": 8}
MOMENTUM = {"zo__server": "momentum", "zo__local_steps": 2, "run__num_devices": 8}
ADAM = {"zo__server": "adam", "zo__params": "head/*"}
LIARS = {"faults__byzantine": 0.25, "robust__rule": "clip"}
slow = pytest.mark.slow
ROUNDS = 3


@pytest.mark.parametrize(
    ("algorithm", "overrides"),
    (
        ("zo", {}),
        pytest.param("fedkseed_pro", {}, marks=slow),
        pytest.param("baffle", {}, marks=slow),
        pytest.param("zo", MOMENTUM | {"faults__dropout": 0.6, "faults__nan": 0.3}, marks=slow),
        pytest.param("zo", SHARED | ADAM | LIARS, marks=slow),
    ),
    ids=str,
)
def test_a_late_joiner_that_replays_equals_one_that_never_left_to_the_bit(algorithm, overrides):
    built = tiny.build(algorithm, **overrides)
    phase, states, _, records = tiny.run(built, ROUNDS)
    apply, follower = jax.jit(tiny.algorithm(built, phase).apply), states[0]
    for record in records:
        sent = jax.tree.map(np.array, record)
        # What travels: no array of the model's size is among it.
        assert sum(leaf.size for leaf in jax.tree.leaves(sent)) < 200
        follower = apply(follower, sent, built.run_key)
    chex.assert_trees_all_equal(follower, states[-1])
    assert int(follower.round_idx) == ROUNDS


def test_another_key_or_another_scalar_gives_other_parameters():
    built = tiny.build("zo")
    phase, states, _, ((record,),) = tiny.run(built)
    apply = jax.jit(tiny.algorithm(built, phase).apply)
    other_key = apply(states[0], (record,), jax.random.fold_in(built.run_key, 1))
    changed = record._replace(messages=record.messages.at[0, 0, 0].add(1e-3))
    other_scalar = apply(states[0], (changed,), built.run_key)
    for other in (other_key, other_scalar):
        apart = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), other.params, states[1].params)
        assert max(jax.tree.leaves(apart)) > 1e-6
