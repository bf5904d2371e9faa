"""The numbers that a pass through a model computes with. Weights, statistics, losses and updates
are float32 whatever the choice.

name        activations  matrix products and convolutions
float32     float32      float32
tf32        float32      inputs rounded to 10 bits of mantissa on GPUs that have TensorFloat-32;
                         three products of bfloat16 on TPUs; float32 on CPUs
bfloat16    bfloat16     inputs have 7 bits of mantissa, sums are float32
float64     float64      float64; only with jax_enable_x64: the yardstick for the others

A zeroth-order probe moves each weight by eps * tau = 7.5e-5, less than the distance between two
numbers around 0.02 in bfloat16 (1.2e-4) and five of them in TensorFloat-32: measured accuracies of
the scalars are in ``docs/results/notes_on_performance``. JAX's own default on recent GPUs is
TensorFloat-32, and bfloat16 on TPUs; here it is always float32 unless a config says otherwise.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.dtypes
import jax.numpy as jnp

from zo_fl.engine.types import Array

# Of activations, of products, and the perturbation at which rounding and curvature spoil loss
# differences about equally: measured with two models; tf32 is put between its neighbours.
_CHOICES = {
    "float32": (jnp.float32, "highest", 1e-5),
    "tf32": (jnp.float32, "high", 1e-4),
    "bfloat16": (jnp.bfloat16, "default", 1e-3),
    "float64": (jnp.float64, "highest", 1e-6),
}
PRECISIONS = tuple(_CHOICES)
_FORWARD_MODE = ContextVar("forward_mode", default=False)


def available() -> list[str]:
    """Returns the names of those that this process can compute with."""
    wide = jax.dtypes.canonicalize_dtype(jnp.float64) == jnp.float64
    return [name for name in PRECISIONS if name != "float64" or wide]


def activation_dtype(name: str) -> type:
    """Returns the dtype of the images that a model is given; its layers keep to it."""
    return _CHOICES[name][0]


def products(name: str) -> str:
    """Returns the value for ``jax.default_matmul_precision``."""
    return _CHOICES[name][1]


def best_eps(name: str) -> float:
    """Returns the perturbation scale at which scalars err least, on a CNN and an MLP."""
    return _CHOICES[name][2]


def widen(x: Array) -> Array:
    """Returns activations in float32, or more if they are: for sums and for the last layer."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@contextmanager
def forward_mode() -> Iterator[None]:
    """Makes a model that is traced within differentiable in forward mode.

    On CPUs the gradients of convolutions are written out, for reverse mode only; not so within.
    """
    token = _FORWARD_MODE.set(True)
    try:
        yield
    finally:
        _FORWARD_MODE.reset(token)


def in_forward_mode() -> bool:
    """Returns whether the caller is within ``forward_mode``."""
    return _FORWARD_MODE.get()
