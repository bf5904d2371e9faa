"""Every model: sizes, shapes, statistics, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zo_fl.engine.errors import ConfigError
from zo_fl.models import MODELS, create

KEY = jax.random.key(0)
EVERY = [(name, norm) for name, (_, norms) in MODELS.items() for norm in norms]


def _count(module, size=32):
    example = jnp.zeros((1, size, size, 3))
    shapes = jax.eval_shape(lambda key: module.init(key, example, train=False), KEY)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize(
    ("name", "norm", "num_classes", "count"),
    [
        ("resnet18", "batch", 10, 11_173_962),
        ("resnet18", "group", 10, 11_173_962),
        ("resnet18", "batch", 1000, 11_681_832),
        ("preact_resnet18", "batch", 10, 11_172_170),
        ("vit", "layer", 10, 18_978_314),
        ("cnn", "group", 10, 24_346),
        ("cnn", "batch", 10, 24_346),
        ("cnn_large", "none", 10, 1_626_442),
        ("mlp", "none", 10, 32 * 32 * 3 * 64 + 64 + 64 * 10 + 10),
    ],
)
def test_the_number_of_parameters_is_the_published_one(name, norm, num_classes, count):
    assert _count(create(name=name, norm=norm, num_classes=num_classes)) == count


def test_a_preactivation_resnet_of_half_width_is_heterofls_level_b():
    module = create(name="preact_resnet18", norm="batch", num_classes=10).clone(width=0.5)
    assert _count(module) == 2_796_714


@functools.cache
def _variables(name, norm):
    """Shapes of a model of seven classes."""
    module = create(name=name, norm=norm, num_classes=7)
    return jax.eval_shape(lambda: module.init(KEY, jnp.zeros((1, 16, 16, 3)), train=False))


@pytest.mark.parametrize(("name", "norm"), EVERY)
@pytest.mark.parametrize("train", [True, False])
def test_a_model_returns_one_row_of_logits_an_example(name, norm, train):
    module, variables = create(name=name, norm=norm, num_classes=7), _variables(name, norm)
    x = jax.ShapeDtypeStruct((5, 16, 16, 3), jnp.float32)
    logits = jax.eval_shape(lambda v, x: module.apply(v, x, train=train), variables, x)
    assert (logits.shape, logits.dtype) == ((5, 7), jnp.float32)


@pytest.mark.parametrize(("name", "norm"), EVERY)
def test_there_are_batch_stats_only_with_batch_norm(name, norm):
    assert set(_variables(name, norm)) == (
        {"params", "batch_stats"} if norm == "batch" else {"params"}
    )


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18", "cnn"])
def test_a_convolution_before_a_norm_has_no_bias(name):
    for path, _ in jax.tree.flatten_with_path(_variables(name, "group"))[0]:
        keys = [entry.key for entry in path]
        assert keys[-1] != "bias" or "norm" in keys[-2] or keys[-2] == "head"


def _with_statistics(name, width):
    """Returns a model, variables drawn by NumPy (compiling initializers takes seconds), images."""
    module = create(name=name, norm="batch", num_classes=3).clone(**width)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(6, 8, 8, 3)), jnp.float32)
    shapes = jax.eval_shape(lambda: module.init(KEY, x, train=False))
    # Between 0.5 and 1.5, so that variances are positive, with random signs for parameters.
    values = jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape), shapes)
    signed = jax.tree.map(lambda leaf: leaf * rng.choice([-1, 1], leaf.shape), values["params"])
    variables = {"params": signed, "batch_stats": values["batch_stats"]}
    return module, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), variables), x


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("cnn", {}),
        pytest.param("resnet18", {"width": 1 / 16}, marks=pytest.mark.slow),
        pytest.param("preact_resnet18", {"width": 1 / 16}, marks=pytest.mark.slow),
    ],
)
def test_masked_examples_change_neither_statistics_nor_other_logits(name, width):
    module, variables, x = _with_statistics(name, width)
    mask = jnp.arange(6) < 4
    apply = jax.jit(
        lambda x, mask: module.apply(variables, x, train=True, mask=mask, mutable=["batch_stats"])
    )
    logits, state = apply(x, mask)
    other_logits, other_state = apply(x.at[4:].set(100.0), mask)
    assert jnp.array_equal(logits[:4], other_logits[:4])
    assert jax.tree.all(jax.tree.map(jnp.array_equal, state, other_state))


def test_running_statistics_change_only_when_training_and_mutable():
    module, variables, x = _with_statistics("cnn", {})

    @jax.jit
    def applied():
        trained = module.apply(variables, x, train=True, mutable=["batch_stats"])
        evaluated = module.apply(variables, x, train=False, mutable=["batch_stats"])
        return trained, evaluated, module.apply(variables, x, train=True)

    (logits, trained), (_, evaluated), probe = jax.device_get(applied())
    equal = lambda a, b: jax.tree.all(jax.tree.map(np.array_equal, a, b))  # noqa: E731
    before = {"batch_stats": variables["batch_stats"]}
    assert not equal(trained, before)
    assert equal(evaluated, before)
    assert np.array_equal(probe, logits)


@pytest.mark.slow
def test_a_client_without_examples_keeps_its_statistics_and_has_finite_gradients():
    module, variables, x = _with_statistics("cnn", {})
    params, stats = variables["params"], variables["batch_stats"]

    @jax.jit
    def loss(params):
        logits, new = module.apply(
            {"params": params, "batch_stats": stats},
            x,
            train=True,
            mask=jnp.zeros(6, bool),
            mutable=["batch_stats"],
        )
        return logits.sum(), new["batch_stats"]

    gradient, new = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert jax.tree.all(jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), gradient))
    assert jax.tree.all(jax.tree.map(lambda a, b: jnp.allclose(a, b, atol=1e-6), new, stats))


@pytest.mark.parametrize(
    ("block", "field"),
    [
        ({"name": "vit", "norm": "batch"}, "norm"),
        ({"name": "cnn", "norm": "layer"}, "norm"),
        ({"name": "cnn_large", "norm": "group"}, "norm"),
    ],
)
def test_an_impossible_model_is_an_error_of_one_line_that_names_the_field(block, field):
    with pytest.raises(ConfigError) as error:
        create(num_classes=10, **block)
    message = str(error.value)
    assert f"config.model.{field}" in message and "allowed" in message
    assert repr(block[field]) in message and "\n" not in message
