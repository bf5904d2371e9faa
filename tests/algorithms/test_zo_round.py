"""Options of the zeroth-order round that the contract does not know of."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from zo_fl.engine import trees
from zo_fl.engine.errors import ConfigError
from zo_fl.host.traffic import phase_traffic

pytestmark = pytest.mark.slow


def one_round(params_of=None, **overrides):
    built = tiny.build("zo", **overrides)
    (phase,) = built.phases
    before = tiny.start(built, phase)
    after, metrics, (record,) = jax.jit(tiny.algorithm(built, phase).round)(
        before, built.data, built.run_key
    )
    return built, phase, before, after, metrics, record


def delta(before, after):
    return jax.flatten_util.ravel_pytree(jax.tree.map(jnp.subtract, after.params, before.params))[0]


def test_sum_aggregation_is_mean_with_a_learning_rate_s_times_cohort_larger():
    _, phase, before, mean, *_ = one_round(zo__lr=1e-3)
    assert phase.cohort_size == 8
    *_, before_sum, total, _, _ = one_round(zo__lr=1e-3 / (3 * 8), zo__aggregation="sum")
    np.testing.assert_allclose(delta(before_sum, total), delta(before, mean), rtol=1e-3, atol=1e-7)


def test_a_round_lowers_the_loss_of_the_population():
    built = tiny.build("zo", zo__lr=2e-2, zo__num_directions=16)
    (phase,) = built.phases
    state, step, losses = tiny.start(built, phase), jax.jit(tiny.algorithm(built, phase).round), []
    for _ in range(6):
        state, metrics, _ = step(state, built.data, built.run_key)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.01


def test_clients_have_directions_of_their_own_unless_they_share_them():
    built, phase, _, _, _, record = one_round()
    state, decode = tiny.start(built, phase), tiny.only_strategy(phase).decode
    first, second = (
        jax.flatten_util.ravel_pytree(decode(jnp.ones((1, 3)), i, state, built.run_key))[0]
        for i in (0, 1)
    )
    assert abs(float(jnp.corrcoef(first, second)[0, 1])) < 0.02
    assert record.messages.shape == (8, 1, 3)


def test_shared_directions_are_rebuilt_once_and_broadcast_as_their_mean():
    built, phase, before, after, _, record = one_round(zo__seed_policy="shared")
    mean = jnp.average(record.messages, axis=0, weights=record.weights)
    # The mean of the messages as if one client had sent it: the same directions, its weight one.
    alone = record._replace(messages=mean[None], weights=jnp.ones(1))
    alone = alone._replace(cohort=jax.tree.map(lambda leaf: leaf[:1], record.cohort))
    followed = tiny.algorithm(built, phase).apply(before, (alone,), built.run_key)
    chex.assert_trees_all_close(after.params, followed.params, rtol=1e-6, atol=1e-7)
    traffic = phase_traffic(phase, before.params, {}, built.data)
    assert traffic.uplink == 8 * 12 and traffic.downlink == 8 * 12


def test_per_client_directions_cost_the_paper_s_bytes():
    built, phase, before, *_ = one_round()
    traffic = phase_traffic(phase, before.params, {}, built.data)
    model = trees.num_bytes(before.params)
    # 12 B up a client, of a low tier too; everyone receives the 3 scalars of each of the 8; one
    # model each at first.
    assert traffic == (8 * model, 8 * 12, 8 * (8 * 12), 12)


@pytest.mark.parametrize("microbatch", (50, 77, 1000))
def test_microbatches_change_nothing_without_batch_statistics(microbatch):
    *_, whole = one_round()
    *_, parts = one_round(zo__microbatch=microbatch)
    np.testing.assert_allclose(parts.messages, whole.messages, rtol=1e-4, atol=2e-7)


def test_augmentation_is_the_same_in_every_pass():
    # At eps -> 0 both sides of a pair see the same pixels exactly if their difference vanishes.
    *_, record = one_round(zo__augment=True, zo__eps=1e-12)
    assert not np.any(record.messages)


def test_a_sampled_cohort_changes_with_the_round():
    built = tiny.build("zo", zo__cohort_size=3)
    (phase,) = built.phases
    state, step, seen = tiny.start(built, phase), jax.jit(tiny.algorithm(built, phase).round), set()
    for _ in range(5):
        state, _, (record,) = step(state, built.data, built.run_key)
        assert len(set(map(int, record.cohort.client_ids))) == 3
        seen.add(tuple(map(int, record.cohort.client_ids)))
    assert len(seen) > 1


def test_a_client_whose_probes_are_all_broken_drops_out():
    built = tiny.build("zo")
    (phase,) = built.phases
    state = tiny.start(built, phase)
    broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), state.params)
    batch = trees.squeeze(tiny.gather(built, [0]))
    result = tiny.only_strategy(phase).client_update(
        state._replace(params=broken), batch, built.run_key
    )
    assert float(result.weight) == 0.0
    after, metrics, _ = jax.jit(tiny.algorithm(built, phase).round)(
        state._replace(params=broken), built.data, built.run_key
    )
    assert np.isnan(metrics["loss"])


@pytest.mark.parametrize(
    ("field", "value"),
    (
        ("bn_policy", "sync"),
        ("seed_policy", "none"),
        ("aggregation", "median"),
        ("estimator", "three_point"),
        ("weights", "square"),
        ("local_steps", 0),
        ("batch_size", -1),
        ("microbatch", -1),
        ("cohort_size", 9),
        ("tiers", "middle"),
        ("participation", "random"),
    ),
)
def test_a_bad_value_is_one_line_that_names_its_field(field, value):
    with pytest.raises(ConfigError, match=f"config.zo.{field}") as caught:
        tiny.build("zo", **{f"zo__{field}": value})
    assert "\n" not in str(caught.value) and repr(value).strip("'") in str(caught.value)
