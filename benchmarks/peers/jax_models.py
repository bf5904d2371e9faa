"""The models in JAX alone: dicts of weights, and functions."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .workloads import GROUPS, STAGES, Workload

Weights = dict[str, jax.Array]

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_PADDING = {1: "VALID", 3: ((1, 1), (1, 1))}


def _he_normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    fan_in = np.prod(shape[:-1])
    return (rng.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32)


def _init_cnn(rng: np.random.Generator) -> dict[str, np.ndarray]:
    shapes = [(3, 3, 3, 32), (3, 3, 32, 64), (14 * 14 * 64, 128), (128, 10)]
    weights = {f"kernel{i}": _he_normal(rng, *shape) for i, shape in enumerate(shapes)}
    return weights | {f"bias{i}": np.zeros(shape[-1], np.float32) for i, shape in enumerate(shapes)}


def _cnn(weights: Weights, x: jax.Array) -> jax.Array:
    for i in range(2):
        x = lax.conv_general_dilated(
            x, weights[f"kernel{i}"], (1, 1), "VALID", dimension_numbers=_LAYOUT
        )
        x = jax.nn.relu(x + weights[f"bias{i}"])
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = jax.nn.relu(x.reshape(x.shape[0], -1) @ weights["kernel2"] + weights["bias2"])
    return x @ weights["kernel3"] + weights["bias3"]


def _init_resnet18(rng: np.random.Generator) -> dict[str, np.ndarray]:
    weights = {"head": _he_normal(rng, STAGES[-1], 10), "head_bias": np.zeros(10, np.float32)}

    def add(name: str, size: int, inputs: int, outputs: int) -> None:
        weights[name] = _he_normal(rng, size, size, inputs, outputs)
        weights[f"{name}_scale"] = np.ones(outputs, np.float32)
        weights[f"{name}_bias"] = np.zeros(outputs, np.float32)

    add("stem", 3, 3, STAGES[0])
    inputs = STAGES[0]
    for stage, outputs in enumerate(STAGES):
        for block in range(2):
            name = f"stage{stage}_block{block}"
            add(f"{name}_conv1", 3, inputs, outputs)
            add(f"{name}_conv2", 3, outputs, outputs)
            if inputs != outputs:
                add(f"{name}_shortcut", 1, inputs, outputs)
            inputs = outputs
    return weights


def _conv_norm(weights: Weights, name: str, x: jax.Array, stride: int = 1) -> jax.Array:
    """A convolution, then GroupNorm."""
    kernel = weights[name]
    x = lax.conv_general_dilated(
        x, kernel, (stride, stride), _PADDING[kernel.shape[0]], dimension_numbers=_LAYOUT
    )
    groups = x.reshape(*x.shape[:3], GROUPS, -1)
    mean = groups.mean((1, 2, 4), keepdims=True)
    variance = groups.var((1, 2, 4), keepdims=True)
    x = ((groups - mean) * lax.rsqrt(variance + 1e-5)).reshape(x.shape)
    return x * weights[f"{name}_scale"] + weights[f"{name}_bias"]


def _resnet18(weights: Weights, x: jax.Array) -> jax.Array:
    x = jax.nn.relu(_conv_norm(weights, "stem", x))
    for stage in range(len(STAGES)):
        for block in range(2):
            name = f"stage{stage}_block{block}"
            stride = 2 if stage > 0 and block == 0 else 1
            y = jax.nn.relu(_conv_norm(weights, f"{name}_conv1", x, stride))
            y = _conv_norm(weights, f"{name}_conv2", y)
            if f"{name}_shortcut" in weights:
                x = _conv_norm(weights, f"{name}_shortcut", x, stride)
            x = jax.nn.relu(x + y)
    return x.mean((1, 2)) @ weights["head"] + weights["head_bias"]


def create(workload: Workload):
    """Returns start weights, and ``loss(weights, images, labels)``, a mean over the images."""
    init, forward = {"cnn": (_init_cnn, _cnn), "resnet18": (_init_resnet18, _resnet18)}[
        workload.model
    ]

    def loss(weights: Weights, images: jax.Array, labels: jax.Array) -> jax.Array:
        log_probabilities = jax.nn.log_softmax(forward(weights, images))
        return -jnp.take_along_axis(log_probabilities, labels[:, None], axis=1).mean()

    weights = init(np.random.default_rng(0))
    return {name: jnp.asarray(value) for name, value in weights.items()}, loss
