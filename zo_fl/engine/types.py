"""What data, cohorts, states and messages are made of, with shapes.

Axis letters, used throughout the project:
``N`` examples, ``K`` clients in the population, ``C`` clients in the cohort, ``n`` examples of a
client (padded), ``S`` directions, ``d`` parameters, ``R`` rounds of a chunk, ``H W c`` image axes.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array
PyTree = Any
Params = PyTree
ModelState = PyTree
Message = PyTree
# A tree of arrays with a leading axis of examples, such as {"image": u8[n, H, W, c], "label":
# i32[n]}. What is in it, only the data set and the ``Task`` know.
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


class ClientBatch(NamedTuple):
    """All training examples of one client. A cohort is the same with a leading ``C``.

    Attributes:
      client_id: ``i32[]`` index in the population.
      tier: ``i32[]``.
      examples: leaves ``[n, ...]``.
      mask: ``bool[n]``, True for a real example; all False for a padding client.
    """

    client_id: Array
    tier: Array
    examples: Examples
    mask: Array


class Cohort(NamedTuple):
    """The clients of one round.

    Attributes:
      client_ids: ``i32[C]``.
      valid: ``bool[C]``, False for padding clients, which change nothing.
    """

    client_ids: Array
    valid: Array


class ServerState(NamedTuple):
    """All that a checkpoint needs: arrays only, no key and no function.

    Attributes:
      params: ``f32`` trainable parameters; what is perturbed and optimized.
      model_state: running statistics of BatchNorm, or ``{}``.
      opt_state: state of the server's optax optimizer.
      strategy_state: what the method itself remembers between rounds, or ``()``.
      round_idx: ``i32[]`` rounds done since the start of the run, over all phases.
    """

    params: Params
    model_state: ModelState
    opt_state: PyTree
    strategy_state: PyTree
    round_idx: Array


class ClientResult(NamedTuple):
    """What one client returns.

    Attributes:
      message: exactly what is uploaded; its shape is what the uplink is billed for.
      weight: ``f32[]`` weight in the mean over the cohort, usually the client's example count; 0
        for a client that drops out.
      model_state: statistics uploaded beside the message, or ``{}`` when none travel.
      metrics: dict of ``f32[]``; averaged over the cohort by ``weight``. Usually with ``loss``.
    """

    message: Message
    weight: Array
    model_state: ModelState
    metrics: dict[str, Array]
