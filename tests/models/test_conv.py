"""All implementations of a convolution are one function with one gradient."""

import jax
import jax.numpy as jnp
import pytest

from zo_fl.engine.precision import forward_mode
from zo_fl.models import conv
from zo_fl.models.conv import conv2d

pytestmark = pytest.mark.slow

# (height and width, kernel size, stride, padding)
CASES = [
    ((6, 6), 3, 1, "SAME"),
    ((7, 5), 3, 1, "VALID"),
    ((6, 6), 3, 2, "SAME"),
    ((7, 8), 3, 2, 1),
    ((7, 6), 1, 2, 0),
    ((8, 8), 4, 4, "VALID"),
    ((5, 5), 3, 1, 3),
    ((5, 5), 1, 1, 1),
]


def _operands(size, kernel_size, clients=None):
    keys = jax.random.split(jax.random.key(0))
    lead = () if clients is None else (clients,)
    x = jax.random.normal(keys[0], (*lead, 2, *size, 5))
    return x, jax.random.normal(keys[1], (*lead, kernel_size, kernel_size, 5, 4))


def _value_and_gradients(implementation, stride, padding):
    def loss(x, kernel):
        y = conv2d(x, kernel, stride, padding, implementation)
        return jnp.sum(jnp.sin(y)), y

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)


def _assert_close(expected, actual):
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
        assert a.shape == b.shape
        assert jnp.allclose(a, b, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("size", "kernel_size", "stride", "padding"), CASES)
def test_the_quick_one_has_xlas_value_and_gradients(size, kernel_size, stride, padding):
    operands = _operands(size, kernel_size)
    found = (
        jax.jit(_value_and_gradients(how, stride, padding))(*operands)
        for how in ("xla", "fast_grad")
    )
    _assert_close(*found)


@pytest.mark.parametrize("shared", (True, False))
def test_kernels_can_be_mapped_over_with_shared_and_with_own_images(shared):
    x, kernels = _operands((6, 6), 3, clients=3)
    x, axes = (x[0], (None, 0)) if shared else (x, (0, 0))
    found = (
        jax.jit(jax.vmap(_value_and_gradients(how, 2, 1), axes))(x, kernels)
        for how in ("xla", "fast_grad")
    )
    _assert_close(*found)


@pytest.mark.parametrize(
    ("features", "columns", "stride", "padding", "at_once"),
    [
        (4, 8, 1, "SAME", 8),
        (16, 8, 1, "SAME", 2),
        (4, 7, 1, "SAME", 1),
        (4, 8, 2, 1, 1),
    ],
)
def test_columns_of_three_channel_images_taken_at_once_are_those_taken_alone(
    features, columns, stride, padding, at_once
):
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (2, 6, columns, 3))
    kernel = jax.random.normal(keys[1], (3, 3, 3, features))
    expected = jax.jit(_value_and_gradients("xla", stride, padding))(x, kernel)
    _assert_close(expected, jax.jit(_value_and_gradients("fast_grad", stride, padding))(x, kernel))
    with forward_mode():
        program = jax.make_jaxpr(lambda x, kernel: conv2d(x, kernel, stride, padding, "fast_grad"))(
            x, kernel
        )
    (convolution,) = (e for e in program.eqns if e.primitive.name == "conv_general_dilated")
    assert convolution.params["window_strides"] == (stride, at_once * stride)


@pytest.mark.parametrize("n", [6, 7])
def test_a_kernel_gradient_summed_over_chunks_is_the_whole_one(n, monkeypatch):
    keys = jax.random.split(jax.random.key(0))
    x, kernel = jax.random.normal(keys[0], (n, 5, 5, 3)), jax.random.normal(keys[1], (3, 3, 3, 4))
    expected = jax.jit(_value_and_gradients("xla", 1, "SAME"))(x, kernel)
    monkeypatch.setattr(conv, "_CHUNK_BYTES", 3 * 25 * (3 + 4) * 4)  # three examples
    actual = jax.jit(_value_and_gradients("fast_grad", 1, "SAME"))(x, kernel)
    _assert_close(expected, actual)


def test_auto_is_the_quick_gradient_on_a_cpu_and_xlas_elsewhere(monkeypatch):
    x, kernel = _operands((6, 6), 3)
    for backend, choice in (("cpu", "fast_grad"), ("gpu", "xla"), ("tpu", "xla")):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        auto, chosen = (
            str(jax.make_jaxpr(lambda x, k, how=how: conv2d(x, k, implementation=how))(x, kernel))
            for how in ("auto", choice)
        )
        assert auto == chosen


def test_an_unknown_implementation_is_an_error():
    x, kernel = _operands((6, 6), 3)
    with pytest.raises(ValueError, match="fft"):
        conv2d(x, kernel, implementation="fft")
