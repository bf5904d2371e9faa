"""Models of the user: any Linen module, checked, and told apart by what it computes."""

import contextlib
import hashlib
import inspect
import re
import warnings
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from zo_fl.engine import image_task, keys
from zo_fl.engine.fields import ConfigError
from zo_fl.engine.statistics import BATCH_NORM_MOMENTUM
from zo_fl.engine.types import Dataset, Task

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def identity(module: nn.Module, dataset: Dataset) -> str:
    """Returns the class of a module, and a digest of what it computes on a data set's images.

    Equal for equal programs, whatever their parts are called: a lambda, a partial function, a class
    that was changed. Another version of JAX may write the same program otherwise.
    """
    plain = dataset._replace(mean=np.zeros_like(dataset.mean), std=np.ones_like(dataset.std))
    learning = own_task(module, plain)  # the data have an identity of their own
    digest = hashlib.sha256(learning.head.encode())
    model = jax.eval_shape(learning.init, keys.run_key(0))
    arguments = (*model, jax.tree.map(lambda leaf: leaf[:2], dataset.train), np.ones(2, bool))
    key = keys.run_key(0)
    programs = [jax.make_jaxpr(learning.init)(key)]
    programs += [
        jax.make_jaxpr(lambda key, *a, train=train: learning.logits(*a, train, key))(
            key, *arguments
        )
        for train in (False, True)
    ]

    def loss(params, key, *rest):
        return learning.losses(params, *rest, True, key)[0].sum()

    with contextlib.suppress(Exception):  # of what has no derivative; zeroth-order rounds need none
        programs.append(jax.make_jaxpr(jax.grad(loss))(arguments[0], key, *arguments[1:]))
    for program in programs:
        digest.update(_ADDRESS.sub("", str(program)).encode())
        for constant in _constants(program):
            if jnp.issubdtype(constant.dtype, jax.dtypes.prng_key):
                constant = jax.random.key_data(constant)
            digest.update(np.asarray(constant).tobytes())
    return f"{type(module).__name__} {digest.hexdigest()[:16]}"


def _constants(program: Any) -> Iterator[Any]:
    """Yields the arrays in a program and in those within, which its text leaves out."""
    yield from getattr(program, "consts", ())
    for equation in program.eqns:
        yield from (
            v.val for v in equation.invars if isinstance(getattr(v, "val", None), np.ndarray)
        )
        for part in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if _is_program(part):
                yield from _constants(part)


def _is_program(part: Any) -> bool:
    return hasattr(part, "eqns")


def own_task(module: nn.Module, dataset: Dataset) -> Task:
    """Returns the task of any Linen module ``(x, train, mask) -> logits``; it may leave out two.

    Its last layer is the submodule ``head``, or the one that its attribute ``last_layer`` names;
    methods that treat the last layer apart need it.

    Raises:
      ConfigError: it cannot take the data set's images, has another number of outputs, or
        collections that are not supported.
    """
    shape, name = dataset.train["image"].shape[1:], type(module).__name__
    head = str(getattr(module, "last_layer", image_task.HEAD))
    try:
        learning = image_task.classification(
            module, shape, dataset.num_classes, dataset.mean, dataset.std, head
        )
        examples = jax.tree.map(lambda leaf: leaf[:2], dataset.train)
        model = jax.eval_shape(learning.init, keys.run_key(0))
        arguments = (*model, examples, np.ones(2, bool))
        logits, _ = jax.eval_shape(lambda *a: learning.logits(*a, False), *arguments)
        # Training, too: what fails there would fail after the folder is made.
        key = keys.run_key(0)
        trained, _ = jax.eval_shape(lambda *a: learning.logits(*a, True, key), *arguments)
    except Exception as error:  # of a user's module: anything
        first = str(error).strip().splitlines() or [""]
        raise ConfigError(
            f"the model {name} fails on images {shape}: {type(error).__name__}: {first[0]}"
        ) from error
    for output in (logits, trained):
        found = getattr(output, "shape", None)
        if found != (2, dataset.num_classes) or not jnp.issubdtype(output.dtype, jnp.floating):
            what = type(output).__name__ if found is None else f"{output.dtype}{list(found[1:])}"
            raise ConfigError(
                f"the model {name} gives {what} an image, the data set has {dataset.num_classes} "
                f"classes; allowed: float32[{dataset.num_classes}]; change the model"
            )
    for leaf in jax.tree.leaves(model):
        if leaf.dtype not in (jnp.float32, jnp.float64):
            raise ConfigError(
                f"the model {name} has parameters of {leaf.dtype}; allowed: float32, of which "
                "config fields make other precisions"
            )
    if learning.has_statistics:
        _check_statistics(learning, examples, module)
    return learning


def _check_statistics(learning: Task, examples: Any, module: nn.Module) -> None:
    """Checks the momentum of batch statistics; methods that average them rely on it."""
    name = type(module).__name__
    params, statistics = learning.init(keys.run_key(0))
    moved = [
        learning.logits(params, start, examples, np.ones(2, bool), True, keys.run_key(0))[1]
        for start in (optax.tree.ones_like(statistics), optax.tree.zeros_like(statistics))
    ]
    kept = jax.tree.leaves(optax.tree.sub(*moved))
    if not all(np.allclose(leaf, BATCH_NORM_MOMENTUM, atol=1e-3) for leaf in kept):
        raise ConfigError(
            f"the model {name} keeps {float(np.mean(kept[0])):.3g} of its running statistics a "
            f"step; allowed: {BATCH_NORM_MOMENTUM}, as nn.BatchNorm(momentum=0.9)"
        )
    if "mask" not in inspect.signature(type(module).__call__).parameters:
        warnings.warn(
            f"the model {name} has batch statistics and takes no `mask`: where a batch is padded, "
            "padding enters them; add mask=None to __call__ and hand it to nn.BatchNorm",
            stacklevel=2,
        )
