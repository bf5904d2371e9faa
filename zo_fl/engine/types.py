"""Names for what arrays stand for; the data of a federation, and what is learned from them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

Array = jax.Array
PyTree = Any
Params = PyTree
ModelState = PyTree
Message = PyTree
# A tree of arrays with a leading axis of examples, such as {"image": u8[n, H, W, c], "label":
# i32[n]}. Only the data set and the ``Task`` know what is in it.
Examples = PyTree

LOW, HIGH = 0, 1  # client tiers: forward passes only, or back-propagation as well


class Dataset(NamedTuple):
    """A whole data set on the host, decoded.

    Attributes:
      name: the name it was loaded by.
      train: examples, NumPy arrays ``[N, ...]``, possibly memory-mapped.
      test: examples ``[M, ...]``.
      num_classes: labels lie in ``[0, num_classes)``.
      mean: ``f32[c]`` channel means of pixels, in [0, 1] where these are ``u8``.
      std: ``f32[c]`` channel standard deviations.
      client_indices: rows of ``train`` of each client, or ``i32[K, n]`` of all; None: a partition
        is drawn.
    """

    name: str
    train: Examples
    test: Examples
    num_classes: int
    mean: np.ndarray
    std: np.ndarray
    client_indices: Sequence[np.ndarray] | np.ndarray | None = None


class FederatedData(NamedTuple):
    """The training set and who holds what.

    NumPy arrays on the host, then device arrays, always passed to ``jit`` as arguments.

    Attributes:
      examples: leaves ``[N, ...]``.
      client_indices: ``i32[K, n]`` rows of ``examples`` held by each client; padded with 0.
      client_sizes: ``i32[K]`` how many of the ``n`` entries are real.
      client_tiers: ``i32[K]``, ``HIGH`` or ``LOW``.
    """

    examples: Examples
    client_indices: Array | np.ndarray
    client_sizes: Array | np.ndarray
    client_tiers: Array | np.ndarray


class Task(NamedTuple):
    """A learning problem: model, preprocessing and loss as pure functions of parameters.

    Only they, and ``data``, know what an example is; ``image_task`` makes those of classifying
    images. Augmentation is a function of its own, called once by whoever makes passes: every pass
    over a batch then sees the same pixels, as the two sides of a zeroth-order pair must.

    Attributes:
      init: ``key -> (params, model_state)``.
      logits: ``(params, model_state, examples, mask bool[n], train, key=None) -> (f32[n, classes],
        model_state)``. ``train`` means batch statistics and moved running ones; without it both are
        left alone. ``key`` is for modules that draw while they train, such as dropout.
      losses: ``(params, model_state, examples, mask, train, key=None) -> (f32[n], model_state)``, a
        loss an example.
      loss_of_logits: ``(logits f32[n, classes], examples) -> f32[n]``, in float32.
      labels: ``examples -> i32[n]``, the classes.
      relabel: ``(examples, i32[n]) -> examples``, with other classes.
      augment: ``(key, examples) -> examples`` of the same shapes.
      inputs: ``examples -> f32[n, ...]``, what the model is given.
      blank: ``() -> examples``, one of average pixels.
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
    blank: Callable[[], Examples]
    head: str
    num_classes: int
    module: nn.Module
    has_statistics: bool
    with_precision: Callable[[str], "Task"]
