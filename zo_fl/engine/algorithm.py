"""The parts of a method: states, messages, clients, server, phases.

    Client.update -> message -> Client.decode -> mean or sum over the cohort -> Server.step

These types only describe; ``round.make_algorithm`` runs a ``Phase`` on devices. ZOWarmUp is two
phases, and the pivot is where the first one ends.

Axis letters, used throughout the project: ``N`` examples, ``K`` clients in the population, ``C``
clients in the cohort, ``n`` examples of a client (padded), ``S`` directions, ``d`` parameters,
``R`` rounds of a chunk, ``H W c`` image axes.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from zo_fl.engine.keys import Keys
from zo_fl.engine.types import (
    HIGH,
    LOW,
    Array,
    Examples,
    FederatedData,
    Message,
    ModelState,
    Params,
    PyTree,
    Task,
)

TIERS = {"high": (HIGH,), "low": (LOW,), "all": (LOW, HIGH)}


class Problem(NamedTuple):
    """The input of every method.

    Attributes:
      task: model, preprocessing and loss.
      narrow_task: ``width -> Task`` of the same model with that share of its channels.
      clients: the federation, NumPy arrays.
      validation: the same clients with their validation examples, None if there are none.
    """

    task: Task
    narrow_task: Callable[[float], Task]
    clients: FederatedData
    validation: FederatedData | None = None


class ClientBatch(NamedTuple):
    """All training examples of one client. A cohort's batch has a leading ``C``.

    Attributes:
      client_id: ``i32[]`` index in the population.
      tier: ``i32[]``, ``HIGH`` or ``LOW``.
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
      opt_state: state of the server's optimizer; ``()`` where a client sees the state.
      strategy_state: what the method itself remembers between rounds, or ``()``.
      round_idx: ``i32[]`` rounds done since the start of the run, over all phases.
    """

    params: Params
    model_state: ModelState
    opt_state: PyTree
    strategy_state: PyTree
    round_idx: Array


class ClientResult(NamedTuple):
    """The result of one client.

    Attributes:
      message: exactly what is uploaded; the uplink is billed for its shape.
      weight: ``f32[]``, usually the client's example count; 0 for a client that drops out.
      model_state: statistics uploaded beside the message, or ``{}``.
      metrics: dict of ``f32[]``, averaged over the cohort by ``weight``. Usually has ``loss``.
    """

    message: Message
    weight: Array
    model_state: ModelState
    metrics: dict[str, Array]


def as_sent(message: Message, state: ServerState, keys: Keys) -> PyTree:
    """Returns the message itself: it already is the update."""
    return message


def whole_model(state: ServerState) -> PyTree:
    """Returns parameters and running statistics: what most clients receive."""
    return state.params, state.model_state


class Client(NamedTuple):
    """One client's part of a round; the caller maps over clients.

    Attributes:
      update: ``(state, batch, keys) -> ClientResult``. All randomness comes from ``keys``.
      decode: ``(message, state, keys of its sender) -> update``, the message's part in the mean.
      receives: ``state -> PyTree``: the downlink is billed for its shape.
      replays: whether messages are scalars from which anyone rebuilds the update. They are then
        gathered and decoded by everyone, instead of being decoded where they arise.
      read_alone: whether each message must be decoded by itself, along directions or by scales of
        its sender's own, so that the sum of messages says nothing.
      one_model: whether all clients evaluate the same parameters: the examples of several clients
        then make one batch.
      holds_part: whether clients hold only the part of the model that they receive.
      sent_bytes: ``batch -> i32[]`` bytes of a message; None where its shape says it.
    """

    update: Callable[[ServerState, ClientBatch, Keys], ClientResult]
    decode: Callable[[Message, ServerState, Keys], PyTree] = as_sent
    receives: Callable[[ServerState], PyTree] = whole_model
    replays: bool = False
    read_alone: bool = False
    one_model: bool = False
    holds_part: bool = False
    sent_bytes: Callable[[ClientBatch], Array] | None = None


class Keeping(NamedTuple):
    """Features that clients may use instead of their examples: computed once, as a phase begins.

    Where data are streamed, ``Client.update`` gets the examples and must do the same with them.
    Phases that follow each other share what the same object computes.

    Attributes:
      compute: ``(params, model_state, examples) -> examples``, leaves ``[N, ...]`` in the same
        order; depends on nothing that the phase changes.
      on_client: whether clients themselves keep it, which costs them memory and saves them passes.
        Otherwise only the simulation may, to share it between runs.
    """

    compute: Callable[[Params, ModelState, Examples], Examples]
    on_client: bool


class Group(NamedTuple):
    """Clients that do the same in a round; most methods have one group.

    Attributes:
      client: what each of them does.
      sample_cohort: ``round key -> Cohort``.
      cohort_size: real clients in each cohort.
      forward_passes: single-example forward passes of the group in a round.
      eligible: ``i32[E]``, the ids of the clients that may be in a cohort.
      backward_passes: single-example backward passes of the group in a round.
      name: tells the groups of a phase apart in reports; "" if there is one.
      on_validation: whether they use their validation examples; the same in all groups of a phase.
      keeping: what they may use instead of examples; the same in all groups of a phase.
      release: what they reveal of one example (``wrap.privacy.Release``); None promises nothing.
      chosen: values of config fields that were left to the program, for the summary.
    """

    client: Client
    sample_cohort: Callable[[Array], Cohort]
    cohort_size: int
    forward_passes: float
    eligible: np.ndarray
    backward_passes: float = 0.0
    name: str = ""
    on_validation: bool = False
    keeping: Keeping | None = None
    release: Any = None
    chosen: Mapping[str, Any] = {}  # read only

    @property
    def pass_equivalents(self) -> float:
        """Passes of a round, in forward ones: a backward pass costs about two."""
        return self.forward_passes + 2 * self.backward_passes


class Reducer(NamedTuple):
    """The reduction of a cohort's updates to one.

    Attributes:
      is_sum: the plain sum over clients of positive weight; otherwise the mean by weights.
      middle: ``(stacked updates f32[C, ...], weights f32[C]) -> update`` instead of the mean. A
        client of weight 0 has no say, and its update may be NaN.
      factors: ``(norms f32[C], weights f32[C]) -> f32[C]``, by which messages are scaled first.
      tolerant: whether a round goes on without clients whose numbers are not finite, and leaves
        the state as it was if nobody is left.
    """

    is_sum: bool = False
    middle: Callable[[PyTree, Array], PyTree] | None = None
    factors: Callable[[Array, Array], Array] | None = None
    tolerant: bool = False

    @property
    def looks_at_all(self) -> bool:
        """Whether all updates are needed at once: a model a client, or a few scalars."""
        return self.middle is not None or self.factors is not None


class Server(NamedTuple):
    """The server's part of a round; ``server.descend`` and ``server.assign`` make it.

    Attributes:
      init: ``(params, strategy state of the phase before) -> (opt_state, strategy_state)``.
      step: ``(reduced, state, keys of the round) -> (params, opt_state, strategy_state)``.
      reducer: how the updates become one.
      statistics: ``(running statistics, mean of the clients' or {}) -> running statistics``.
      note: ``(strategy_state, ids i32[C], bool[C] whose answer counts) -> strategy_state``, after
        the step.
    """

    init: Callable[[Params, PyTree], tuple[PyTree, PyTree]]
    step: Callable[[PyTree, ServerState, Keys], tuple[Params, PyTree, PyTree]]
    reducer: Reducer = Reducer()
    statistics: Callable[[ModelState, ModelState], ModelState] = lambda running, uploaded: running
    note: Callable[[PyTree, Array, Array], PyTree] | None = None


class Stop(NamedTuple):
    """Ends a phase early, by how many of their validation examples clients get right.

    Attributes:
      every: rounds between questions; the last round of the phase is followed by one too.
      patience: questions without a better answer after which the phase ends; one more example that
        they get right is better.
      tiers: who is asked, a key of ``TIERS``.
      hands_over: whether the last phase of the run takes the rounds that are saved.
      asked: ``(state, data) -> (params, model_state)``, the model that is asked about.
      sent: ``state -> PyTree``: the downlink of a question is billed for its shape.
      keep: ``state -> state`` after the best answer so far.
    """

    every: int
    patience: int
    tiers: str = "all"
    hands_over: bool = False
    asked: "Evaluated | None" = None
    sent: Callable[[ServerState], PyTree] = whole_model
    keep: Callable[[ServerState], ServerState] | None = None


Evaluated = Callable[[ServerState, FederatedData | None], tuple[Params, ModelState]]


def as_trained(state: ServerState, data: FederatedData | None) -> tuple[Params, ModelState]:
    """Returns the state's own model."""
    return state.params, state.model_state


class Phase(NamedTuple):
    """A stretch of rounds of one method: a description, without the devices that it runs on.

    Attributes:
      name: shown in metrics and plots.
      num_rounds: how many, at most; 0 skips the phase.
      groups: who does what.
      server: what becomes of their updates.
      evaluated: ``(state, data) -> (params, model_state)``, the model that is evaluated, and that
        the next phase starts from; data are None where they are streamed. None where the phase
        only prepares what a later one needs: the next phase starts from the state's own model.
      stop: what may end it before its rounds are over.
    """

    name: str
    num_rounds: int
    groups: tuple[Group, ...]
    server: Server
    evaluated: Evaluated | None = as_trained
    stop: Stop | None = None

    @property
    def replays(self) -> bool:
        """Whether a round follows from what clients send in it, keys and the state before."""
        return all(group.client.replays for group in self.groups)

    @property
    def sums_suffice(self) -> bool:
        """Whether the server needs only the sum of what clients send: secure aggregation fits."""
        alone = self.server.reducer.looks_at_all or any(g.client.read_alone for g in self.groups)
        return not alone

    @property
    def cohort_size(self) -> int:
        """Clients a round, over all groups."""
        return sum(group.cohort_size for group in self.groups)

    @property
    def pass_equivalents(self) -> float:
        """See ``Group``; of a round."""
        return sum(group.pass_equivalents for group in self.groups)

    @property
    def on_validation(self) -> bool:
        """See ``Group``."""
        return self.groups[0].on_validation

    @property
    def keeping(self) -> Keeping | None:
        """See ``Group``."""
        return self.groups[0].keeping

    def model(self, state: ServerState, data: FederatedData | None) -> tuple[Params, ModelState]:
        """Returns the model ``(params, model_state)`` that the phase has arrived at."""
        return (self.evaluated or as_trained)(state, data)


def start(
    phase: Phase,
    params: Params,
    model_state: ModelState,
    round_idx: int | Array = 0,
    before: PyTree = None,
) -> ServerState:
    """Returns the first state of a phase; its optimizer starts afresh.

    ``params`` and ``model_state`` are of the model that the phase before has arrived at, or of the
    run's first; ``before`` is that phase's strategy state. ``round_idx`` rounds are done.
    """
    opt_state, strategy_state = phase.server.init(params, before)
    return ServerState(params, model_state, opt_state, strategy_state, jnp.int32(round_idx))
