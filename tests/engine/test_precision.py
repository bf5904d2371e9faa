"""What computes in which precision, read off the traced programs."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import Precision

from tests import tiny
from zo_fl import models
from zo_fl.engine import image_task, precision
from zo_fl.engine.fields import ConfigError
from zo_fl.host import evaluate

pytestmark = pytest.mark.slow

EXAMPLES = {
    "image": jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.uint8),
    "label": jax.ShapeDtypeStruct((2,), jnp.int32),
}
MASK = jax.ShapeDtypeStruct((2,), jnp.bool_)
PRODUCTS = ("dot_general", "conv_general_dilated")


def make_task(name, norm, conv="fast_grad"):
    module = models.create(name=name, norm=norm, conv=conv, num_classes=10)
    half = np.full(3, 0.5, np.float32)
    return image_task.classification(module, (16, 16, 3), 10, half, half)


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def traced(function, *arguments):
    """Returns every matrix product and convolution of a function, and the shapes that it returns.

    Sums written as products are left out.
    """
    program, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    found = [eqn for eqn in equations(program.jaxpr) if eqn.primitive.name in PRODUCTS]
    return [eqn for eqn in found if min(v.aval.ndim for v in eqn.invars) > 1], shapes


def gradient(learning):
    """Returns ``arguments -> (gradient, (losses, model state))``."""

    def objective(params, model_state, examples, mask):
        losses, state = learning.losses(params, model_state, examples, mask, True)
        return losses.mean(), (losses, state)

    return jax.grad(objective, has_aux=True)


# Made of the layers of others: resnet18, cnn.
ALIKE = ("preact_resnet18", "cnn_large")
# Every model with its first norm, and the smallest one with every norm.
CASES = [
    (name, norm)
    for name, (_, norms) in models.MODELS.items()
    for norm in (norms if name == "cnn" else norms[:1])
    if name not in ALIKE
]


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_bfloat16_is_for_activations_and_products_alone(name, norm):
    learning = make_task(name, norm).with_precision("bfloat16")
    variables = jax.eval_shape(learning.init, jax.random.key(0))
    found, shapes = traced(gradient(learning), *variables, EXAMPLES, MASK)
    inputs = [{v.aval.dtype for v in eqn.invars} for eqn in found]
    narrow = sum(dtypes == {jnp.dtype(jnp.bfloat16)} for dtypes in inputs)
    # The last layer, forward and twice backward, is in float32. So are means over a patch, and
    # gradients of products that widen.
    wide = 7 if name == "patches" else 3
    assert narrow >= len(found) - wide > 0
    leaves = jax.tree.leaves((variables, shapes))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("name", "conv", "precision", "expected"),
    [
        ("cnn", "fast_grad", "float32", Precision.HIGHEST),
        *(("cnn", conv, "tf32", Precision.HIGH) for conv in ("fast_grad", "xla")),
        ("vit", "fast_grad", "tf32", Precision.HIGH),
        ("patches", "fast_grad", "tf32", Precision.HIGH),
    ],
)
def test_every_product_has_the_precision_forward_and_backward(name, conv, precision, expected):
    norm = models.MODELS[name][1][0]
    learning = make_task(name, norm, conv).with_precision(precision)
    variables = jax.eval_shape(learning.init, jax.random.key(0))
    found, _ = traced(gradient(learning), *variables, EXAMPLES, MASK)
    if name == "patches":  # its means, products with one column, are as exact as means
        means = [eqn for eqn in found if any(1 in v.aval.shape for v in eqn.invars)]
        assert {eqn.params["precision"] for eqn in means} == {(Precision.HIGHEST,) * 2}
        found = [eqn for eqn in found if eqn not in means]
    assert found
    assert {eqn.params["precision"] for eqn in found} == {(expected, expected)}


def test_each_phase_has_its_own_precision():
    built = tiny.build("zowarmup", warmup__precision="bfloat16", zo__precision="float32")
    for phase, is_narrow in zip(built.phases, (True, False), strict=True):
        state = tiny.start(built, phase)
        found, _ = traced(tiny.algorithm(built, phase).round, state, built.data, built.run_key)
        has_narrow = any(v.aval.dtype == jnp.bfloat16 for eqn in found for v in eqn.invars)
        assert has_narrow == is_narrow, phase.name


def test_features_and_evaluation_have_the_precision_of_the_model():
    built = tiny.build("ridge", model__precision="bfloat16", model__name="mlp")
    state = tiny.start(built, built.phases[0])
    programs = {
        "sums": (tiny.algorithm(built, built.phases[0]).round, state, built.data, built.run_key),
        "evaluation": (
            evaluate.make_evaluate(built.task),
            state.params,
            state.model_state,
            evaluate.make_set(built.federation.dataset.test, 8, built.engine),
        ),
    }
    for name, (function, *arguments) in programs.items():
        found, _ = traced(function, *arguments)
        assert any(v.aval.dtype == jnp.bfloat16 for eqn in found for v in eqn.invars), name


def test_the_scalars_of_a_coarser_precision_are_farther_from_the_exact_ones():
    learning = make_task("mlp", "none")
    key = jax.random.key(0)
    params, _ = jax.jit(learning.init)(key)
    images = jax.random.randint(key, EXAMPLES["image"].shape, 0, 256).astype(jnp.uint8)
    examples = {"image": images, "label": jnp.array([1, 2])}
    arguments = ({}, examples, jnp.ones(2, bool), False)

    def losses(precision, params):
        learner = learning.with_precision(precision)
        return jax.jit(lambda params: learner.losses(params, *arguments)[0])(params)

    with jax.enable_x64(True):
        exact = losses("float64", jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params))
    assert exact.dtype == jnp.float64
    errors = [
        float(np.abs(np.asarray(losses(precision, params), np.float64) - np.asarray(exact)).max())
        for precision in ("float32", "bfloat16")
    ]
    assert errors[0] < 2e-6 < 1e-4 < errors[1] < 0.2


def test_what_this_process_cannot_compute_with_is_refused():
    assert "float64" not in precision.available()
    with jax.enable_x64(True):
        assert "float64" in precision.available()
    with pytest.raises(ConfigError, match=r"zo.precision='float64' is not allowed; allowed"):
        tiny.build("zo", zo__precision="float64")
