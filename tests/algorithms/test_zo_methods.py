"""What ties the zeroth-order methods together: one is a special case of the other."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from zo_fl.engine import keys, trees
from zo_fl.engine.errors import ConfigError
from zo_fl.engine.fields import take
from zo_fl.host.traffic import phase_traffic
from zo_fl.zo import directions, fedkseed, local_steps
from zo_fl.zo.probing import Probing

pytestmark = pytest.mark.slow


def run(built, rounds=2):
    (phase,) = built.phases
    state = first = tiny.start(built, phase)
    step = jax.jit(tiny.algorithm(built, phase).round)
    for _ in range(rounds):
        state, _, records = step(state, built.data, built.run_key)
    return phase, first, state, records


def test_mezo_is_the_zeroth_order_round_with_one_client():
    alone = dict(data__num_clients=1, data__high_fraction=1.0)
    settings = dict(eps=1e-3, tau=1.0, num_directions=2, distribution="gaussian", lr=1e-3)
    blocks = {name: {f"{name}__{k}": v for k, v in settings.items()} for name in ("mezo", "zo")}
    _, _, mezo, _ = run(tiny.build("mezo", mezo__batch_size=64, **blocks["mezo"], **alone))
    _, _, zo, _ = run(tiny.build("zo", zo__batch_size=64, **blocks["zo"], **alone))
    chex.assert_trees_all_equal(mezo.params, zo.params)


def test_one_local_step_of_decomfl_is_the_zeroth_order_round_with_shared_directions():
    settings = dict(eps=1e-3, tau=1.0, num_directions=2, distribution="gaussian", lr=1e-3)
    settings |= dict(local_steps=1, batch_size=0)
    blocks = {name: {f"{name}__{k}": v for k, v in settings.items()} for name in ("decomfl", "zo")}
    _, _, decomfl, _ = run(tiny.build("decomfl", **blocks["decomfl"]))
    shared = dict(zo__seed_policy="shared", zo__weights="uniform")
    _, _, zo, _ = run(tiny.build("zo", **blocks["zo"], **shared))
    chex.assert_trees_all_equal(decomfl.params, zo.params)


def test_one_local_step_is_the_main_method_and_its_local_rate_changes_nothing():
    phase, _, one, (record,) = run(tiny.build("zo", zo__local_steps=1))
    _, _, other, _ = run(tiny.build("zo", zo__local_steps=1, zo__local_lr=123.0))
    chex.assert_trees_all_equal(one.params, other.params)
    assert record.messages.shape == (8, 1, 3) and phase.forward_passes == 8 * 90 * 6


@pytest.mark.parametrize("steps", (2, 4, 6))
def test_local_steps_go_once_through_a_client_s_examples_in_chunks_of_equal_size(steps):
    phase, _, _, (record,) = run(tiny.build("zo", zo__local_steps=steps), rounds=1)
    assert record.messages.shape == (8, steps, 3) and phase.forward_passes == 8 * 90 * 6
    fields = take(Probing, tiny.config(zo__local_steps=steps)["zo"])
    rows, mask = local_steps.draw(fields, jnp.ones(90, bool), keys.run_key(0))
    assert rows.shape == (steps, -(-90 // steps))
    assert sorted(np.asarray(rows)[np.asarray(mask)]) == list(range(90))


def test_local_steps_without_a_local_rate_average_their_estimates():
    # With local_lr -> 0 all steps probe at w, on their own chunk: a smaller-batch estimate.
    _, _, still, (record,) = run(tiny.build("zo", zo__local_steps=2, zo__local_lr=1e-30), rounds=1)
    _, _, moving, _ = run(tiny.build("zo", zo__local_steps=2, zo__local_lr=0.5), rounds=1)
    assert np.all(np.isfinite(record.messages))
    difference = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), still.params, moving.params)
    assert max(jax.tree.leaves(difference)) > 1e-6


class TestFedKSeed:
    @pytest.mark.parametrize("algorithm", ("fedkseed", "fedkseed_pro"))
    def test_the_rebuilt_model_is_the_mean_of_the_clients_local_models(self, algorithm):
        built = tiny.build(algorithm)
        (phase,) = built.phases
        before = tiny.start(built, phase)
        after, *_ = jax.jit(tiny.algorithm(built, phase).round)(before, built.data, built.run_key)
        local = self.local_models(built, before)
        mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *local)
        chex.assert_trees_all_close(after.params, mean, rtol=1e-5, atol=1e-7)

    @staticmethod
    def local_models(built, state):
        """Returns each client's own weights after its local steps, by the steps' definition."""
        (phase,) = built.phases
        config = tiny.config()["fedkseed"]
        add = directions.create(config["distribution"], config["tau"])
        strategy = tiny.only_strategy(phase)
        update = jax.jit(strategy.client_update)

        @jax.jit
        def take_step(params, message, client, step):
            alone = jnp.zeros_like(message).at[step].set(message[step])
            pool = strategy.decode(alone, client, state, built.run_key)
            step_back = fedkseed.Pool(pool.accumulators, (), ())
            return fedkseed.from_start(add, params, step_back, built.run_key, config["lr"])

        models = []
        for client in range(built.data.client_sizes.shape[0]):
            batch = trees.squeeze(tiny.gather(built, [client]))
            message = update(state, batch, built.run_key).message
            params = state.params
            for step in range(config["local_steps"]):
                params = take_step(params, message, jnp.int32(client), step)
            models.append(params)
        return models

    def test_a_late_joiner_needs_the_first_model_and_k_numbers(self):
        built = tiny.build("fedkseed", fedkseed__candidate_seeds=8)
        _, first, state, _ = run(built, rounds=3)
        config = tiny.config()["fedkseed"]
        add = directions.create(config["distribution"], config["tau"])
        rebuilt = fedkseed.from_start(
            add, first.params, state.strategy_state, built.run_key, config["lr"]
        )
        assert state.strategy_state.accumulators.shape == (8,)
        chex.assert_trees_all_close(rebuilt, state.params, rtol=1e-5, atol=1e-7)

    def test_it_bills_whichever_is_smaller_all_scalars_or_the_pool(self):
        for candidates, expected in ((1000, 8 * 3 * 4), (8, 8 * 4)):
            built = tiny.build("fedkseed", fedkseed__candidate_seeds=candidates)
            (phase,) = built.phases
            state = tiny.start(built, phase)
            traffic = phase_traffic(phase, state.params, {}, built.data)
            assert traffic.uplink == 8 * 3 * 4 and traffic.downlink == 8 * expected

    def test_pro_draws_candidates_with_large_scalars_more_often(self):
        magnitudes = jnp.array([0.0, 1.0, 2.0, 4.0])
        pool = fedkseed.Pool(jnp.zeros(4), magnitudes, jnp.full(4, 2.0))
        p = jax.nn.softmax(fedkseed.log_probabilities(pool))
        np.testing.assert_allclose(p, jax.nn.softmax(jnp.array([0.0, 0.25, 0.5, 1.0])), rtol=1e-6)
        unseen = fedkseed.Pool(jnp.zeros(4), jnp.zeros(4), jnp.ones(4))
        np.testing.assert_allclose(jax.nn.softmax(fedkseed.log_probabilities(unseen)), 0.25)

    @pytest.mark.parametrize(
        ("field", "value"), (("candidate_seeds", 0), ("lr", -1.0), ("weights", "square"))
    )
    def test_a_bad_value_is_one_line_that_names_its_field(self, field, value):
        with pytest.raises(ConfigError, match=f"config.fedkseed.{field}"):
            tiny.build("fedkseed", **{f"fedkseed__{field}": value})


def test_mixed_tiers_are_each_tier_s_own_round_weighed_by_examples():
    built = tiny.build("mixed_tiers", warmup__lr=0.05, zo__lr=0.01)
    _, first, mixed, _ = run(built, rounds=1)
    sizes = np.bincount(np.asarray(built.data.client_tiers))  # equal examples: clients weigh alike
    high = run(tiny.build("fedavg", warmup__lr=0.05), rounds=1)[2]
    low = run(tiny.build("zo", zo__tiers="low", zo__lr=0.01), rounds=1)[2]
    expected = jax.tree.map(
        lambda w, up, down: w + (sizes[1] * (up - w) + sizes[0] * (down - w)) / sizes.sum(),
        first.params,
        high.params,
        low.params,
    )
    chex.assert_trees_all_close(mixed.params, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    (
        ({"data__high_fraction": 1.0}, "8 high and 0 low.*config.data.high_fraction"),
        ({"zo__seed_policy": "shared"}, "config.zo.seed_policy"),
        (
            {"zo__bn_policy": "recalibrate", "model__name": "cnn", "model__norm": "batch"},
            "config.zo.bn_policy",
        ),
    ),
)
def test_what_mixed_tiers_cannot_average_is_refused_in_one_line(overrides, message):
    with pytest.raises(ConfigError, match=message):
        tiny.build("mixed_tiers", **overrides)


@pytest.mark.parametrize(
    ("field", "value"), (("clip", -1.0), ("ema", 1.0), ("num_rounds", -1), ("lr", -0.1))
)
def test_bad_values_of_baffle_are_refused_in_one_line(field, value):
    with pytest.raises(ConfigError, match=field):
        tiny.build("baffle", **{f"baffle__{field}": value})


def test_baffle_evaluates_a_moving_average_of_the_parameters():
    built = tiny.build("baffle", baffle__ema=0.9)
    (phase,) = built.phases
    state, step, average = (
        tiny.start(built, phase),
        jax.jit(tiny.algorithm(built, phase).round),
        None,
    )
    for done in range(1, 4):
        average = state.params if average is None else average
        state, _, _ = step(state, built.data, built.run_key)
        rate = (1 + done) / (10 + done)  # well below 0.9: the start is soon forgotten
        average = jax.tree.map(lambda a, p, r=rate: r * a + (1 - r) * p, average, state.params)
    params, _ = phase.evaluated(state, built.data)
    chex.assert_trees_all_close(params, average, rtol=1e-5, atol=1e-6)
