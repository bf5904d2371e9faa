"""What is learned: a model and a data set's preprocessing as pure functions of parameters.

Augmentation is *not* done here but by the caller, on the uint8 images, once: every pass over a
batch then sees the same pixels, as the two sides of a zeroth-order pair must.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

from zo_fl.core import augment
from zo_fl.core import precision as precisions
from zo_fl.core.types import Array, ModelState, Params


class Task(NamedTuple):
    """Pure functions of one learning problem.

    Attributes:
      init: ``key -> (params, model_state)``.
      logits: ``(params, model_state, images u8[n,H,W,c], mask bool[n], train) ->
        (f32[n, num_classes], model_state)``. ``train`` means batch statistics and moved running
        ones; without it both are left alone.
      losses: ``(params, model_state, images, labels i32[n], mask, train) ->
        (f32[n] cross-entropy per example, model_state)``.
      cross_entropy: ``(logits f32[n, classes], labels i32[n]) -> f32[n]``, in float32.
      has_statistics: whether the model has batch statistics.
      with_precision: ``(name, field) -> Task``: the same problem, computed in one of
        ``precision.PRECISIONS``; ``field`` of the config is named if there is no such one.
    """

    init: Callable[[Array], tuple[Params, ModelState]]
    logits: Callable[..., tuple[Array, ModelState]]
    losses: Callable[..., tuple[Array, ModelState]]
    cross_entropy: Callable[[Array, Array], Array]
    has_statistics: bool
    with_precision: Callable[[str, str], "Task"]


def classification(
    module: nn.Module,
    image_shape: tuple[int, ...],
    mean: np.ndarray,
    std: np.ndarray,
    precision: str = "float32",
) -> Task:
    """Returns image classification with cross-entropy by a Linen module.

    Args:
      module: see ``zo_fl.models``; called as ``module(x, train=, mask=)``.
      image_shape: ``(H, W, c)``.
      mean: ``f32[c]`` of pixels in [0, 1].
      std: ``f32[c]``.
      precision: one of ``precision.PRECISIONS``.
    """
    apply: Any = module.apply  # its return type depends on ``mutable``
    example = np.zeros((1, *image_shape), np.float32)

    def init(key):
        variables: Any = module.init(key, example, train=False)
        return variables["params"], variables.get("batch_stats", {})

    def logits(params, model_state, images, mask, train):
        variables = {"params": params}
        if model_state:
            variables["batch_stats"] = model_state
        x = augment.normalize(images, mean, std).astype(precisions.activation_dtype(precision))
        # Products remember their precision: those of a backward pass have it from the forward one.
        with jax.default_matmul_precision(precisions.products(precision)):
            if not (train and model_state):
                return apply(variables, x, train=train, mask=mask), model_state
            output, new = apply(variables, x, train=True, mask=mask, mutable=["batch_stats"])
            return output, new["batch_stats"]

    def losses(params, model_state, images, labels, mask, train):
        output, model_state = logits(params, model_state, images, mask, train)
        return _cross_entropy(output, labels), model_state

    def with_precision(name, field):
        precisions.check(name, field)
        return classification(module, image_shape, mean, std, name)

    has_statistics = bool(jax.eval_shape(init, jax.random.key(0))[1])
    return Task(init, logits, losses, _cross_entropy, has_statistics, with_precision)


def _cross_entropy(logits: Array, labels: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(precisions.widen(logits), labels)
