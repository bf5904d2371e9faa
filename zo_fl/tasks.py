"""From a model and a data set to a ``Task``: models by name, and any Linen module."""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zo_fl import models
from zo_fl.core import keys, task
from zo_fl.core.errors import ConfigError
from zo_fl.core.task import Task
from zo_fl.core.types import Dataset
from zo_fl.models.layers import BATCH_NORM_MOMENTUM


def named_task(block: Mapping[str, Any], dataset: Dataset, width: float = 1.0) -> Task:
    """Returns the task of the model that a config names; ``block`` is ``config.model``."""
    module = models.create(**block, num_classes=dataset.num_classes, width=width)
    shape = dataset.train["image"].shape[1:]
    return task.classification(module, shape, dataset.num_classes, dataset.mean, dataset.std)


def own_task(module: nn.Module, dataset: Dataset) -> Task:
    """Returns the task of any Linen module ``(x, train, mask) -> logits``; it may leave out two.

    Its last layer is the submodule ``head``, or what its attribute ``last_layer`` names; methods
    that treat the last layer apart need it.

    Raises:
      ConfigError: it cannot take the data set's images, has another number of outputs, or
        collections that are not supported.
    """
    shape, name = dataset.train["image"].shape[1:], type(module).__name__
    try:
        learning = task.classification(
            module,
            shape,
            dataset.num_classes,
            dataset.mean,
            dataset.std,
            getattr(module, "last_layer", task.HEAD),
        )
        params, model_state = jax.eval_shape(learning.init, keys.run_key(0))
        examples = jax.tree.map(lambda leaf: leaf[:2], dataset.train)
        arguments = (params, model_state, examples, np.ones(2, bool))
        logits, _ = jax.eval_shape(lambda *a: learning.logits(*a, False), *arguments)
    except Exception as error:  # of a user's module: anything
        first = str(error).strip().splitlines() or [""]
        raise ConfigError(
            f"the model {name} fails on images {shape}: {type(error).__name__}: {first[0]}"
        ) from error
    if logits.shape != (2, dataset.num_classes):
        raise ConfigError(
            f"the model {name} gives {list(logits.shape[1:])} outputs an image, the data set has "
            f"{dataset.num_classes} classes; change the model"
        )
    if learning.has_statistics:
        _check_statistics(learning, examples, module)
    return learning


def _check_statistics(learning: Task, examples: Any, module: nn.Module) -> None:
    """Checks that batch statistics are moved as the methods that average them expect."""
    name = type(module).__name__
    params, statistics = learning.init(keys.run_key(0))
    moved = [
        learning.logits(params, start, examples, np.ones(2, bool), True)[1]
        for start in (
            jax.tree.map(jnp.zeros_like, statistics),
            jax.tree.map(jnp.ones_like, statistics),
        )
    ]
    kept = jax.tree.leaves(jax.tree.map(lambda zeros, ones: ones - zeros, *moved))
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
