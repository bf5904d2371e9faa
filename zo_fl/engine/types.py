"""Names for what arrays and trees of them stand for, and the data of a federation."""

from typing import Any, NamedTuple

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
      client_indices: rows of ``train`` of each client, or None: a partition is drawn.
    """

    name: str
    train: Examples
    test: Examples
    num_classes: int
    mean: np.ndarray
    std: np.ndarray
    client_indices: tuple[np.ndarray, ...] | None = None


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
