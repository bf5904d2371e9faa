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

CNN = {"model__name": "cnn", "model__norm": "batch"}


@pytest.mark.parametrize(("name", "width"), (("preact_resnet18", 1.0), ("cnn", 0.25)))
def test_a_narrow_model_s_parameters_are_leading_slices_of_the_whole_model_s(name, width):
    options = {"name": name, "norm": "batch", "num_classes": 10, "width": width}
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


@pytest.mark.slow
def test_static_statistics_are_those_of_the_training_data():
    built = tiny.build("heterofl", **CNN)
    (phase,) = built.phases
    state = tiny.start(built, phase)
    assert phase.server.statistics(state.model_state, {}) is state.model_state  # till evaluated
    params, statistics = jax.jit(phase.evaluated)(state, built.data)
    chex.assert_trees_all_equal(params, state.params)
    rows = np.asarray(built.data.client_indices).reshape(-1)
    images = np.asarray(built.data.examples["image"])[rows].astype(np.float32) / 255
    scale, shift = built.federation.dataset.std, built.federation.dataset.mean
    x = jnp.asarray((images - shift) / scale)
    first = jax.lax.conv_general_dilated(
        x,
        state.params["conv0"]["kernel"],
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
        ({"heterofl__levels": "acb"}, "config.heterofl.levels='acb'"),
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
