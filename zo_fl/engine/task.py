"""A learning problem: model, preprocessing and loss as pure functions of parameters.

Augmentation is a function of its own, called once by whoever makes passes: every pass over a batch
then sees the same pixels, as the two sides of a zeroth-order pair must. The task of classifying
images is made in ``engine.image_task``.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn

from zo_fl.engine.types import Array, Examples, ModelState, Params


class Task(NamedTuple):
    """Pure functions of one learning problem. Only they, and ``data``, know what an example is.

    Attributes:
      init: ``key -> (params, model_state)``.
      logits: ``(params, model_state, examples, mask bool[n], train) -> (f32[n, classes],
        model_state)``. ``train`` means batch statistics and moved running ones; without it both are
        left alone.
      losses: ``(params, model_state, examples, mask, train) -> (f32[n], model_state)``, a loss an
        example.
      loss_of_logits: ``(logits f32[n, classes], examples) -> f32[n]``, in float32.
      labels: ``examples -> i32[n]``, the classes.
      relabel: ``(examples, i32[n]) -> examples``, with other classes.
      augment: ``(key, examples) -> examples`` of the same shapes.
      inputs: ``examples -> f32[n, ...]``, what the model is given.
      head: name of the submodule that is the last layer, a key of ``params``.
      num_classes: labels lie in ``[0, num_classes)``.
      module: the model, for methods that are made for one kind.
      has_statistics: whether the model has batch statistics.
      with_precision: ``name -> Task``: the same problem, computed in one of
        ``precision.PRECISIONS``.
    """

    init: Callable[[Array], tuple[Params, ModelState]]
    logits: Callable[..., tuple[Array, ModelState]]
    losses: Callable[..., tuple[Array, ModelState]]
    loss_of_logits: Callable[[Array, Examples], Array]
    labels: Callable[[Examples], Array]
    relabel: Callable[[Examples, Array], Examples]
    augment: Callable[[Array, Examples], Examples]
    inputs: Callable[[Examples], Array]
    head: str
    num_classes: int
    module: nn.Module
    has_statistics: bool
    with_precision: Callable[[str], "Task"]
