"""HeteroFL: nested slices, their average over holders, and its limits."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from zo_fl import models
from zo_fl.engine import trees
from zo_fl.engine.fields import ConfigError
from zo_fl.host.costs import phase_cost
from zo_fl.sgd import heterofl

slow = pytest.mark.slow
CNN = {"model__name": "cnn", "model__norm": "batch"}


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


@slow
def test_at_full_width_with_all_labels_and_equal_sizes_it_is_fedavg_to_the_bit(monkeypatch):
    monkeypatch.setattr(heterofl, "CLIP_NORM", 1e30)
    same = dict(local_epochs=2, batch_size=20, lr=0.1, momentum=0.9, weight_decay=5e-4)
    narrow = {f"heterofl__{field}": value for field, value in same.items()}
    plain = {f"warmup__{field}": value for field, value in same.items()}
    hetero = tiny.build("heterofl", heterofl__levels="a", **narrow)
    fedavg = tiny.build("fedavg", warmup__tiers="all", **plain)
    found = [
        tiny.run(built._replace(data=all_labels_and_equal_sizes(built)), rounds=2)[1][-1].params
        for built in (hetero, fedavg)
    ]
    chex.assert_trees_all_equal(*found)


@pytest.mark.parametrize(
    ("name", "width"), (("cnn", 1.0), ("mlp", 1.0), ("preact_resnet18", 1.0), ("cnn", 0.25))
)
def test_a_narrow_model_s_parameters_are_leading_slices_of_the_whole_model_s(name, width):
    norm = "none" if name == "mlp" else "batch"
    options = {"name": name, "norm": norm, "num_classes": 10, "width": width}
    make = lambda share: models.create(**options, share=share)  # noqa: E731
    init = lambda module: jax.eval_shape(  # noqa: E731
        lambda key: module.init(key, jnp.zeros((1, 32, 32, 3)), train=False), jax.random.key(0)
    )
    whole, half = init(make(1.0)), init(make(0.5))
    assert jax.tree.structure(whole) == jax.tree.structure(half)
    for large, small in zip(jax.tree.leaves(whole), jax.tree.leaves(half), strict=True):
        assert large.ndim == small.ndim
        for m, n in zip(large.shape, small.shape, strict=True):
            assert n in (m, -(-m // 2))


def test_a_narrow_client_sends_and_receives_less_and_is_billed_for_that():
    built = tiny.build("heterofl", **CNN)
    (phase,) = built.phases
    model = jax.eval_shape(built.task.init, built.run_key)
    state, own = jax.eval_shape(lambda: tiny.start(built, phase)), tiny.own_keys(built, 0)
    sent, received = [], []
    for group in phase.groups:
        result = jax.eval_shape(group.client.update, state, tiny.batch_of(built, 0), own)
        sent.append(trees.num_bytes(result.message))
        received.append(trees.num_bytes(jax.eval_shape(group.client.receives, state)))
    assert sent[1] < 0.3 * sent[0] and received[1] < 0.3 * received[0]
    assert received[0] == trees.num_bytes(model)
    counts = [group.cohort_size for group in phase.groups]
    cost = phase_cost(phase, *model, built.data)
    assert (cost.uplink, cost.downlink) == (np.dot(counts, sent), np.dot(counts, received))
    assert cost.at_start == 0


@slow
def test_static_statistics_are_those_of_the_training_data():
    built = tiny.build("heterofl", **CNN)
    phase, (before, after), *_ = tiny.run(built)
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
        ({"heterofl__levels": "ba"}, "config.heterofl.levels='ba'"),
        ({"heterofl__levels": "af"}, "config.heterofl.levels='af'"),
        ({"heterofl__levels": "cd"}, "a among them: someone has to train the whole model"),
        ({"heterofl__cohort_size": 1}, "config.heterofl.cohort_size=1 leaves"),
        ({"heterofl__cohort_size": 9}, "config.heterofl.cohort_size=9 .* exceeds the 8"),
        ({"data__high_fraction": 1.0}, "without any"),
        ({"model__name": "cnn_large"}, "comes in one width.*config.model.name"),
    ),
)
def test_a_bad_value_is_one_line_that_names_its_field(overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        tiny.build("heterofl", **overrides)
    assert "\n" not in str(caught.value)
