"""HeteroFL: nested slices, their average over holders, and its limits."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.benchmarking import client_step
from tests import tiny
from zo_fl import models
from zo_fl.engine import task, trees
from zo_fl.engine.errors import ConfigError
from zo_fl.host.traffic import phase_traffic
from zo_fl.sgd import slices

pytestmark = pytest.mark.slow

CNN = {"model__name": "cnn", "model__norm": "batch"}


def one_round(**overrides):
    built = tiny.build("heterofl", **overrides)
    (phase,) = built.phases
    before = tiny.start(built, phase)
    after, metrics, records = jax.jit(tiny.algorithm(built, phase).round)(
        before, built.data, built.run_key
    )
    return built, phase, before, after, metrics, records


def all_labels_and_equal_sizes(built, per_client=64):
    """Returns the federation's data with the same number of examples and all labels for everyone.

    A power of two: FedAvg's weights, the sizes, then divide out without rounding.
    """
    clients = built.data.client_sizes.shape[0]
    count = len(built.data.examples["label"])
    labels = jnp.arange(count, dtype=jnp.int32) % 10
    rows = np.arange(clients * per_client, dtype=np.int32).reshape(clients, per_client)
    return built.data._replace(
        examples=built.data.examples | {"label": labels},
        client_indices=jnp.asarray(rows),
        client_sizes=jnp.full(clients, per_client, jnp.int32),
    )


def test_at_full_width_with_all_labels_and_equal_sizes_it_is_fedavg_bit_for_bit():
    same = dict(local_epochs=2, batch_size=20, lr=0.1, momentum=0.9, weight_decay=5e-4)
    narrow = {f"heterofl__{field}": value for field, value in same.items()}
    plain = {f"warmup__{field}": value for field, value in same.items()}
    hetero = tiny.build("heterofl", heterofl__levels="a", heterofl__clip_norm=0.0, **narrow)
    fedavg = tiny.build("fedavg", warmup__tiers="all", **plain)
    states = []
    for built in (hetero, fedavg):
        (phase,) = built.phases
        data = all_labels_and_equal_sizes(built)
        state = tiny.start(built, phase)
        step = jax.jit(tiny.algorithm(built, phase).round)
        for _ in range(3):
            state, _, _ = step(state, data, built.run_key)
        states.append(state)
    chex.assert_trees_all_equal(states[0].params, states[1].params)


@pytest.mark.parametrize("name", ("cnn", "mlp", "preact_resnet18"))
def test_a_narrow_model_s_parameters_are_leading_slices_of_the_whole_model_s(name):
    norm = "none" if name == "mlp" else "batch"
    make = lambda width: models.create(name=name, norm=norm, num_classes=10, width=width)  # noqa: E731
    init = lambda module: jax.eval_shape(  # noqa: E731
        lambda key: module.init(key, jnp.zeros((1, 32, 32, 3)), train=False), jax.random.key(0)
    )
    whole, half = init(make(1.0)), init(make(0.5))
    assert jax.tree.structure(whole) == jax.tree.structure(half)
    for large, small in zip(jax.tree.leaves(whole), jax.tree.leaves(half), strict=True):
        assert large.ndim == small.ndim
        for m, n in zip(large.shape, small.shape, strict=True):
            assert n in (m, -(-m // 2))


def test_a_masked_whole_model_computes_what_its_slice_computes():
    """With all entries outside of the slice at zero, the whole model is the narrow one."""
    rng = np.random.default_rng(0)
    wide, narrow = (
        task.classification(
            models.create(name="cnn", norm="none", num_classes=10, width=width),
            (32, 32, 3),
            10,
            np.zeros(3, np.float32),
            np.ones(3, np.float32),
        )
        for width in (1.0, 0.5)
    )
    params, _ = wide.init(jax.random.key(0))
    shapes = jax.eval_shape(narrow.init, jax.random.key(0))[0]
    small = jax.jit(lambda whole: slices.leading_slice(whole, shapes))(params)
    masked = jax.jit(slices.embed)(small, params)
    images = jnp.asarray(rng.integers(0, 256, (4, 32, 32, 3)), jnp.uint8)
    examples = {"image": images, "label": jnp.arange(4)}
    mask = jnp.ones(4, bool)

    def logits_and_gradient(task_, params):
        loss = lambda p: task_.losses(p, {}, examples, mask, False)[0].mean()  # noqa: E731
        both = lambda p: (task_.logits(p, {}, examples, mask, False)[0], jax.grad(loss)(p))  # noqa: E731
        return jax.jit(both)(params)

    expected, of_narrow = logits_and_gradient(narrow, small)
    got, of_wide = logits_and_gradient(wide, masked)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    of_wide = jax.jit(lambda whole: slices.leading_slice(whole, shapes))(of_wide)
    chex.assert_trees_all_close(of_wide, of_narrow, rtol=1e-3, atol=1e-5)


def test_a_slice_and_back_is_the_mask():
    whole = {"w": jnp.arange(12.0).reshape(3, 4) + 1}
    small = slices.leading_slice(whole, {"w": jnp.zeros((2, 2))})
    assert small["w"].tolist() == [[1, 2], [5, 6]]
    assert slices.embed(small, whole)["w"].tolist() == [[1, 2, 0, 0], [5, 6, 0, 0], [0] * 4]


@pytest.mark.parametrize("levels", ("ab", "abc", "abcde"))
def test_the_smallest_block_is_held_by_all_clients_and_the_rest_by_those_wide_enough(levels):
    overrides = {"heterofl__levels": levels}
    built, phase, before, *_ = one_round(**overrides)
    counts = [group.cohort_size for group in phase.groups]
    total = sum(counts)
    holders = jnp.array(counts, jnp.float32) / total
    mean = slices.Update(before.params, holders, jnp.tile(holders[:, None], (1, 10)))
    strategies = [group.strategy for group in phase.groups]
    of_holders = jax.jit(lambda *given: slices.holder_shares(strategies, "head", *given))
    shares = jax.device_get(of_holders(mean, before))
    kernel = total * shares["hidden"]["kernel"]
    assert total == 8 and np.allclose(kernel[:, 0], 8) and np.allclose(kernel[:, -1], counts[0])
    smallest = {"a": 64, "b": 32, "c": 16, "d": 8, "e": 4}[levels[-1]]
    assert np.allclose(kernel[:, smallest - 1], 8) and not np.allclose(kernel[:, smallest], 8)


def test_entries_that_nobody_held_stay_bit_for_bit():
    built = tiny.build("heterofl", data__alpha=0.1)
    (phase,) = built.phases
    only_narrow = [phase.groups[1]]
    strategies = [group.strategy for group in phase.groups]
    before = tiny.start(built, phase)
    batch = trees.squeeze(
        tiny.gather(built, [int(np.flatnonzero(built.data.client_tiers == 0)[0])])
    )
    result = jax.jit(only_narrow[0].strategy.client_update)(before, batch, built.run_key)
    update = only_narrow[0].strategy.decode(result.message, 0, before, built.run_key)
    gradient, _ = slices.mean_over_holders(strategies, "head")(update, before, built.run_key)
    after = optax.apply_updates(before.params, jax.tree.map(lambda g: -g, gradient))
    changed = after["hidden"]["kernel"] != before.params["hidden"]["kernel"]
    assert np.any(changed[:, :32]) and not np.any(changed[:, 32:])
    absent = np.flatnonzero(~np.asarray(result.message[1]))
    assert len(absent)  # some class is missing at this client: its column stays
    head = after["head"]["kernel"] != before.params["head"]["kernel"]
    assert not np.any(head[:, absent]) and np.any(head)


def test_classes_that_a_client_does_not_hold_get_no_gradient():
    built, phase, before, *_ = one_round(heterofl__weight_decay=0.0, data__alpha=0.1)
    batch = trees.squeeze(tiny.gather(built, [2]))
    result = jax.jit(phase.groups[0].strategy.client_update)(before, batch, built.run_key)
    delta, present = result.message
    assert 0 < np.sum(present) < 10
    assert not np.any(np.asarray(delta["head"]["bias"])[~np.asarray(present)])
    assert np.all(np.asarray(delta["head"]["bias"])[np.asarray(present)] != 0)


def test_a_narrow_client_sends_receives_and_holds_less():
    built = tiny.build("heterofl", **CNN)
    (phase,) = built.phases
    state = tiny.start(built, phase)
    shapes = jax.eval_shape(lambda: (state.params, state.model_state))
    memory = []
    for group in phase.groups:
        step_of = phase, group, *shapes, built.data, built.engine
        memory.append(client_step.step_memory(client_step.compile_step(*step_of), *step_of))
    assert memory[1].temporaries < 0.75 * memory[0].temporaries
    sent = [
        trees.num_bytes(
            jax.eval_shape(
                group.strategy.client_update,
                state,
                trees.squeeze(tiny.gather(built, [0])),
                built.run_key,
            ).message
        )
        for group in phase.groups
    ]
    assert sent[1] < 0.3 * sent[0]
    traffic = phase_traffic(phase, state.params, state.model_state, built.data)
    assert traffic.uplink == sum(
        group.cohort_size * bytes_ for group, bytes_ in zip(phase.groups, sent, strict=True)
    )
    whole = trees.num_bytes((state.params, state.model_state))
    assert traffic.downlink < phase.cohort_size * whole and traffic.at_start == 0


def test_static_statistics_are_those_of_the_training_data():
    built, phase, before, after, *_ = one_round(**CNN)
    params, statistics = jax.jit(phase.evaluated)(after, built.data)
    chex.assert_trees_all_equal(params, after.params)
    chex.assert_trees_all_equal(after.model_state, before.model_state)  # nothing moves in training
    rows = np.asarray(built.data.client_indices).reshape(-1)
    images = np.asarray(built.data.examples["image"])[rows].astype(np.float32) / 255
    scale, shift = built.federation.dataset.std, built.federation.dataset.mean
    x = jnp.asarray((images - shift) / scale)
    first = jax.lax.conv_general_dilated(
        x,
        after.params["conv0"]["kernel"],
        (1, 1),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(statistics["norm0"]["mean"], first.mean((0, 1, 2)), atol=1e-3)
    np.testing.assert_allclose(statistics["norm0"]["var"], first.var((0, 1, 2)), rtol=2e-2)


def test_dynamic_levels_are_redrawn_every_round_and_cover_the_population():
    built = tiny.build("heterofl", heterofl__assignment="dynamic", heterofl__levels="abc")
    (phase,) = built.phases
    seen = []
    for round_idx in range(3):
        key = jax.random.fold_in(built.run_key, round_idx)
        cohorts = [group.sample_cohort(key) for group in phase.groups]
        ids = [np.asarray(cohort.client_ids)[np.asarray(cohort.valid)] for cohort in cohorts]
        assert sorted(np.concatenate(ids)) == list(range(8))
        seen.append(tuple(map(tuple, ids)))
    assert len(set(seen)) > 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    (
        ({"heterofl__levels": "ba"}, "config.heterofl.levels"),
        ({"heterofl__levels": "af"}, "config.heterofl.levels"),
        ({"heterofl__levels": ""}, "config.heterofl.levels"),
        ({"heterofl__levels": "b"}, "config.heterofl.levels='b'"),
        ({"heterofl__levels": "cd"}, "a among them: someone has to train the whole model"),
        ({"heterofl__assignment": "fixed"}, "config.heterofl.assignment=.*tier, dynamic"),
        ({"heterofl__cohort_size": 1}, "config.heterofl.cohort_size=1 leaves"),
        ({"heterofl__cohort_size": 9}, "config.heterofl.cohort_size=9 leaves"),
        ({"data__high_fraction": 1.0}, "without any"),
        ({"model__name": "cnn_large"}, "no narrow form.*config.model.name"),
    ),
)
def test_a_bad_value_is_one_line_that_names_its_field(overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        tiny.build("heterofl", **overrides)
    assert "\n" not in str(caught.value)
