"""Models: sizes, masks, errors. Passes of each are traced in ``engine/test_precision.py``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zo_fl.engine.fields import ConfigError
from zo_fl.models import create

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("name", "norm", "num_classes", "width", "count"),
    [
        ("resnet18", "batch", 10, 1.0, 11_173_962),
        ("resnet18", "batch", 1000, 1.0, 11_681_832),
        ("preact_resnet18", "batch", 10, 1.0, 11_172_170),
        ("preact_resnet18", "batch", 10, 0.5, 2_796_714),  # level b of HeteroFL
        ("vit", "layer", 10, 1.0, 18_978_314),
        ("cnn", "group", 10, 1.0, 24_346),
        ("cnn_large", "none", 10, 1.0, 1_626_442),
        ("mlp", "none", 10, 1.0, 32 * 32 * 3 * 64 + 64 + 64 * 10 + 10),
    ],
)
def test_the_number_of_parameters_is_the_published_one(name, norm, num_classes, width, count):
    module = create(name=name, norm=norm, num_classes=num_classes, width=width)
    example = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(lambda key: module.init(key, example, train=False), KEY)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count


@pytest.mark.parametrize(("name", "features"), (("resnet18", 960), ("cnn", 112)))
def test_a_convolution_before_a_norm_has_no_bias_and_a_head_can_see_all_stages(name, features):
    module = create(name=name, norm="group", stages=True, num_classes=7)
    example = jnp.zeros((1, 16, 16, 3))
    params = jax.eval_shape(lambda: module.init(KEY, example, train=False))["params"]
    for path, _ in jax.tree.flatten_with_path(params)[0]:
        keys = [entry.key for entry in path]
        assert keys[-1] != "bias" or "norm" in keys[-2] or keys[-2] == "head"
    assert params["head"]["kernel"].shape == (features, 7)


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("cnn", 1.0),
        pytest.param("resnet18", 1 / 16, marks=pytest.mark.slow),
    ],
)
def test_masked_examples_change_neither_statistics_nor_other_logits(name, width):
    module = create(name=name, norm="batch", num_classes=3, width=width)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(6, 8, 8, 3)), jnp.float32)
    shapes = jax.eval_shape(lambda: module.init(KEY, x, train=False))
    # By NumPy, because compiling initializers takes seconds; positive, as variances are.
    variables = jax.tree.map(lambda leaf: np.float32(rng.uniform(0.5, 1.5, leaf.shape)), shapes)
    mask = jnp.arange(6) < 4
    apply = jax.jit(
        lambda x, mask: module.apply(variables, x, train=True, mask=mask, mutable=["batch_stats"])
    )
    logits, state = apply(x, mask)
    other_logits, other_state = apply(x.at[4:].set(100.0), mask)
    assert jnp.array_equal(logits[:4], other_logits[:4]) and not jnp.array_equal(*logits[:2])
    assert jax.tree.all(jax.tree.map(jnp.array_equal, state, other_state))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"name": "vit", "norm": "batch"}, "norm 'batch', allowed for it: layer; .*model.norm"),
        ({"name": "mlp", "norm": "none", "stages": True}, "config.model.stages=true .*allowed"),
        (
            {"name": "vit", "norm": "layer", "width": 0.5},
            "comes in one width.*allowed: .*model.name",
        ),
    ],
)
def test_an_impossible_model_is_an_error_of_one_line_that_names_the_field(block, message):
    with pytest.raises(ConfigError, match=message) as error:
        create(num_classes=10, **block)
    assert "\n" not in str(error.value)
