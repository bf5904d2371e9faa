"""Options of the zeroth-order round that the contract does not know of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from zo_fl import config as configs
from zo_fl.engine import keys, trees
from zo_fl.engine.algorithm import Problem
from zo_fl.engine.fields import ConfigError
from zo_fl.host.costs import phase_cost
from zo_fl.zo import client


def test_local_steps_go_once_through_a_client_s_examples_in_chunks_of_equal_size():
    steps = 4
    built = tiny.build("zo", zo__local_steps=steps)
    assert built.phases[0].groups[0].forward_passes == 8 * 90 * 6
    problem = Problem(built.task, lambda width: built.task, built.federation.clients)
    block = configs.plain(tiny.config(zo__local_steps=steps))["zo"]
    probing = client.make_probing(problem, block, 0.1)
    rows, masks = client._steps(probing, jnp.ones(90, bool), keys.run_key(0))
    assert rows.shape == (steps, -(-90 // steps))
    assert sorted(np.asarray(rows)[np.asarray(masks)]) == list(range(90))


@pytest.mark.parametrize(("policy", "broadcast"), (("per_client", 8 * 12), ("shared", 12)))
def test_scalars_cost_the_paper_s_bytes(policy, broadcast):
    built = tiny.build("zo", zo__seed_policy=policy)
    params, _ = jax.eval_shape(built.task.init, built.run_key)
    cost = phase_cost(built.phases[0], params, {}, built.data)
    # Up, 12 B a client, of a low tier too; down, everyone receives all scalars, or their mean; and
    # one model each at first.
    assert (cost.uplink, cost.low_uplink, cost.downlink) == (8 * 12, 12, 8 * broadcast)
    assert cost.at_start == 8 * trees.num_bytes(params)


@pytest.mark.slow
def test_microbatches_change_nothing_without_batch_statistics():
    messages = []
    for size in ("auto", 50):
        built = tiny.build("zo", zo__microbatch=size)
        (phase,) = built.phases
        update, state = jax.jit(tiny.only_client(phase).update), tiny.start(built, phase)
        batch, own = tiny.batch_of(built, 0), tiny.own_keys(built, 0)
        messages.append(update(state, batch, own).message)
    np.testing.assert_allclose(*messages, rtol=1e-4, atol=2e-7)


def test_a_client_whose_probes_are_all_broken_drops_out():
    built = tiny.build("zo")
    (phase,) = built.phases
    state = tiny.start(built, phase)
    broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), state.params)
    update, own = jax.jit(tiny.only_client(phase).update), tiny.own_keys(built, 0)
    result = update(state._replace(params=broken), tiny.batch_of(built, 0), own)
    assert result.weight == 0 < update(state, tiny.batch_of(built, 0), own).weight


def test_a_cohort_larger_than_the_population_is_one_line_that_names_the_block_that_says_it():
    with pytest.raises(ConfigError, match=r"config\.zo\.cohort_size=9") as caught:
        tiny.build("decomfl", zo__cohort_size=9)
    assert "\n" not in str(caught.value)
