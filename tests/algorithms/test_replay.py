"""A zeroth-order round can be rebuilt from keys and scalars alone."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny

pytestmark = pytest.mark.slow


def compiled(algorithm, **overrides):
    """Returns an experiment, its first state, and its jitted round and replay."""
    built = tiny.build(algorithm, **overrides)
    (phase,) = built.phases
    made = tiny.algorithm(built, phase)
    return built, tiny.start(built, phase), jax.jit(made.round), jax.jit(made.apply)


programs = functools.cache(compiled)


@pytest.mark.parametrize(
    "how", ({}, {"run__num_devices": 8}, {"run__num_devices": 8, "zo__seed_policy": "shared"})
)
def test_keys_and_scalars_give_the_server_s_parameters_bit_for_bit(how):
    built, before, step, apply = programs("zo", **how)
    after, _, record = step(before, built.data, built.run_key)
    # What travels, as bytes through a file would: no array of the model's size is among it.
    sent = jax.tree.map(np.array, record)
    assert sum(leaf.size for leaf in jax.tree.leaves(sent)) < 100
    chex.assert_trees_all_equal(apply(before, sent, built.run_key), after)


@pytest.mark.parametrize("server", ("momentum", "adam"))
def test_parameters_and_moments_of_a_whole_phase_are_rebuilt_from_its_scalars(server):
    options = tiny.config()["mezo"]["server"] | {"name": server, "weight_decay": 0.1}
    alone = {"data__num_clients": 1, "data__high_fraction": 1.0}
    follow_whole_phase(*compiled("mezo", mezo__server=options, **alone))


@pytest.mark.parametrize("algorithm", ("zo", "decomfl", "fedkseed_pro", "baffle"))
def test_a_late_joiner_that_replays_equals_one_that_never_left(algorithm):
    follow_whole_phase(*programs(algorithm))


@pytest.mark.parametrize(
    "wrong",
    (
        {"faults__dropout": 0.6, "faults__straggler": 0.5, "robust__max_norm": 1e-3},
        {"faults__nan": 0.3, "faults__byzantine": 0.25, "robust__rule": "clip"},
        {"faults__byzantine": 0.25, "robust__rule": "median", "zo__seed_policy": "shared"},
    ),
    ids=str,
)
def test_rounds_of_clients_that_misbehave_are_rebuilt_too(wrong):
    follow_whole_phase(*programs("zo", **wrong))


def follow_whole_phase(built, before, step, apply):
    """Replays four rounds from their records alone, and compares the whole state, bit for bit."""
    state = follower = before
    records = []
    for _ in range(4):
        state, _, record = step(state, built.data, built.run_key)
        records.append(jax.tree.map(np.array, record))
    for record in records:
        follower = apply(follower, record, built.run_key)
    chex.assert_trees_all_equal(follower, state)
    assert int(follower.round_idx) == 4


def test_another_key_or_another_scalar_gives_other_parameters():
    built, before, step, apply = programs("zo")
    after, _, (record,) = step(before, built.data, built.run_key)
    other_key = apply(before, (record,), jax.random.fold_in(built.run_key, 1))
    changed = record._replace(messages=record.messages.at[0, 0, 0].add(1e-3))
    other_scalar = apply(before, (changed,), built.run_key)
    for other in (other_key, other_scalar):
        difference = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), other.params, after.params)
        assert max(jax.tree.leaves(difference)) > 1e-6
