"""Every NamedTuple that crosses a file boundary, with shapes.

Axis letters, used throughout the project:
``N`` examples, ``K`` clients in the population, ``C`` clients in the cohort, ``n`` examples of a
client (padded), ``S`` directions, ``d`` parameters, ``R`` rounds of a chunk, ``H W c`` image axes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array
PyTree = Any
Params = PyTree
ModelState = PyTree
Message = PyTree

LOW, HIGH = 0, 1  # client tiers: forward passes only, or back-propagation as well


class Dataset(NamedTuple):
    """A whole data set on the host, decoded.

    Attributes:
      name: the name it was loaded by.
      train_images: ``u8[N, H, W, c]``, possibly memory-mapped.
      train_labels: ``i32[N]``.
      test_images: ``u8[M, H, W, c]``, possibly memory-mapped.
      test_labels: ``i32[M]``.
      num_classes: labels lie in ``[0, num_classes)``.
      mean: ``f32[c]`` channel means of pixels in [0, 1].
      std: ``f32[c]`` channel standard deviations of pixels in [0, 1].
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int
    mean: np.ndarray
    std: np.ndarray


class FederatedData(NamedTuple):
    """The training set and who holds what.

    NumPy arrays on the host, then device arrays, always passed to ``jit`` as arguments.

    Attributes:
      images: ``u8[N, H, W, c]``.
      labels: ``i32[N]``.
      client_indices: ``i32[K, n]`` rows of ``images`` held by each client; padded with 0.
      client_sizes: ``i32[K]`` how many of the ``n`` entries are real.
      client_tiers: ``i32[K]``, ``HIGH`` or ``LOW``.
    """

    images: Array | np.ndarray
    labels: Array | np.ndarray
    client_indices: Array | np.ndarray
    client_sizes: Array | np.ndarray
    client_tiers: Array | np.ndarray


class ClientBatch(NamedTuple):
    """All training examples of one client. A cohort is the same with a leading ``C``.

    Attributes:
      client_id: ``i32[]`` index in the population.
      tier: ``i32[]``.
      images: ``u8[n, H, W, c]``.
      labels: ``i32[n]``.
      mask: ``bool[n]``, True for a real example; all False for a padding client.
    """

    client_id: Array
    tier: Array
    images: Array
    labels: Array
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
      weight: ``f32[]`` weight in the mean over the cohort, usually the client's example count.
      model_state: statistics uploaded beside the message, or ``{}`` when none travel.
      metrics: dict of ``f32[]``; averaged over the cohort by ``weight``. Has at least ``loss``.
    """

    message: Message
    weight: Array
    model_state: ModelState
    metrics: dict[str, Array]


def _model(state: ServerState) -> PyTree:
    return state.params, state.model_state


def _as_sent(message: Message, client_id: Array, state: ServerState, run_key: Array) -> PyTree:
    del client_id, state, run_key
    return message


class ClientStrategy(NamedTuple):
    """What one kind of client does in a round; the caller maps over clients.

    Attributes:
      client_update: ``(state, batch, run_key) -> ClientResult``. One client, one round. All
        randomness comes from ``keys`` of the run's key, the state's round and the client's id.
        ``opt_state`` is the server's own: it is empty here.
      decode: ``(message, client_id, state, run_key) -> update``. A message's contribution to the
        mean, computed at the server. The default takes the message as it is.
      receives: ``state -> tree``. What the server sends this client when rounds cannot be replayed;
        its shape is what the downlink is billed for. The default is the whole model.
      replays: True if messages are scalars from which any party rebuilds the update: they are
        gathered whole and decoded by everyone, instead of being decoded where they arise.
      one_model: True if all clients evaluate the same weights, whatever their ids: several at once
        are then one larger batch.
    """

    client_update: Callable[..., ClientResult]
    decode: Callable[..., PyTree] = _as_sent
    receives: Callable[[ServerState], PyTree] = _model
    replays: bool = False
    one_model: bool = False


class Group(NamedTuple):
    """Clients that do the same in a round; most algorithms have one group.

    Attributes:
      strategy: what they do.
      sample_cohort: ``round_key -> Cohort``: who takes part.
      cohort_size: real clients in each cohort.
      forward_passes: single-example forward passes of the group in a round.
      name: tells the groups of a phase apart in reports; "" if there is one.
    """

    strategy: ClientStrategy
    sample_cohort: Callable[[Array], "Cohort"]
    cohort_size: int
    forward_passes: float
    name: str = ""


def _no_state(params: Params) -> PyTree:
    del params
    return ()


def _as_averaged(mean_update: PyTree, state: ServerState, run_key: Array) -> tuple[Params, PyTree]:
    del run_key
    return mean_update, state.strategy_state


def _keep(model_state: ModelState, uploaded: ModelState) -> ModelState:
    del uploaded
    return model_state


class Aggregation(NamedTuple):
    """What becomes of the mean over the cohort; the defaults take it as it is.

    Attributes:
      init: ``params -> strategy_state`` at the start of the phase.
      finalize: ``(mean_update, state, run_key) -> (pseudo_gradient, strategy_state)``. The first is
        shaped like ``params``: what the server optimizer descends along (delta = before - after).
      finalize_state: ``(model_state, mean_uploaded_state) -> model_state``. The server's new
        statistics; called with ``{}`` if none were uploaded.
    """

    init: Callable[[Params], PyTree] = _no_state
    finalize: Callable[..., tuple[Params, PyTree]] = _as_averaged
    finalize_state: Callable[[ModelState, ModelState], ModelState] = _keep


class RoundRecord(NamedTuple):
    """What a group's clients sent: with the keys, all that is needed to replay the round.

    Attributes:
      cohort: who took part.
      messages: the messages, stacked, leading ``C``; ``()`` unless the strategy replays.
      weights: ``f32[C]``; 0 for padding clients. ``()`` unless the strategy replays.
    """

    cohort: Cohort
    messages: PyTree
    weights: PyTree


class FederatedAlgorithm(NamedTuple):
    """Pure functions.

    Attributes:
      init: ``(params, model_state, round_idx=0) -> ServerState``, the optimizer's state fresh.
      round: ``(state, data, run_key) -> (state, metrics, records)``. ``metrics`` is a dict of
        ``f32[]``; ``records`` a tuple of one ``RoundRecord`` a group.
      apply: ``(state, records, run_key) -> state``. The server's half of ``round`` for strategies
        that replay: the next state from what was sent alone. Running statistics stay as they are.
    """

    init: Callable[..., ServerState]
    round: Callable[..., tuple[ServerState, dict[str, Array], tuple[RoundRecord, ...]]]
    apply: Callable[..., ServerState]
