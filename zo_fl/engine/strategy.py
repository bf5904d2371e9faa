"""What a method writes: hooks of clients and server, and how a round is made of them.

client_update -> message -> decode -> mean or sum over the cohort -> finalize -> optimizer
                                                                     (or assign)
"""

from typing import Literal, NamedTuple, Protocol

import jax
import numpy as np

from zo_fl.engine.types import (
    Array,
    ClientBatch,
    ClientResult,
    Cohort,
    FederatedData,
    Message,
    ModelState,
    Params,
    PyTree,
    ServerState,
)


class SentBytes(Protocol):
    """What a message takes where that depends on what the client holds."""

    def __call__(self, batch: ClientBatch, /) -> Array:
        """Returns the bytes ``i32[]`` of the message of a client with these examples."""
        ...


class ClientUpdate(Protocol):
    """One client, one round."""

    def __call__(self, state: ServerState, batch: ClientBatch, run_key: Array, /) -> ClientResult:
        """Returns what the client sends.

        Args:
          state: what the server sent; ``opt_state`` is the server's own and empty here.
          batch: all examples of the client.
          run_key: ``key[]``. All randomness comes from ``keys`` of it, the state's round and the
            client's id.
        """
        ...


class Decode(Protocol):
    """The server's reading of one message."""

    def __call__(
        self, message: Message, client_id: Array, state: ServerState, run_key: Array, /
    ) -> PyTree:
        """Returns the message's contribution to the mean (or sum) over the cohort.

        Args:
          message: as sent.
          client_id: ``i32[]`` who sent it.
          state: the server's before the round, without ``opt_state``.
          run_key: ``key[]``.
        """
        ...


class Receives(Protocol):
    """What the server sends a client when rounds cannot be replayed."""

    def __call__(self, state: ServerState, /) -> PyTree:
        """Returns it; its shape is what the downlink is billed for."""
        ...


class ScalarsTwice(Protocol):
    """What a client would send at the precision of the run, and in float32."""

    def __call__(self, state: ServerState, batch: ClientBatch, run_key: Array, /) -> Array:
        """Returns ``f32[2, M]``: M scalars at the run's precision, and the same in float32."""
        ...


class SampleCohort(Protocol):
    """Who takes part."""

    def __call__(self, round_key: Array, /) -> Cohort:
        """Returns the cohort of the round with this ``key[]``."""
        ...


class InitStrategyState(Protocol):
    """The start of what a method remembers between rounds."""

    def __call__(self, params: Params, /) -> PyTree:
        """Returns ``strategy_state`` at the start of the phase, given its first parameters."""
        ...


class Finalize(Protocol):
    """From the reduced updates of a round to what the server optimizer descends along."""

    def __call__(
        self, reduced: PyTree, state: ServerState, run_key: Array, /
    ) -> tuple[Params, PyTree]:
        """Returns ``(pseudo_gradient, strategy_state)``.

        Args:
          reduced: mean or sum of all clients' decoded messages.
          state: the server's before the round.
          run_key: ``key[]``.
        """
        ...


class Assign(Protocol):
    """From the reduced updates of a round to the next parameters themselves."""

    def __call__(
        self, reduced: PyTree, state: ServerState, run_key: Array, /
    ) -> tuple[Params, PyTree]:
        """Returns ``(params, strategy_state)``; the arguments are those of ``Finalize``."""
        ...


class FinalizeState(Protocol):
    """The server's new running statistics."""

    def __call__(self, model_state: ModelState, uploaded: ModelState, /) -> ModelState:
        """Returns them, given the old ones and the mean of the clients', ``{}`` if none came."""
        ...


def _model(state: ServerState) -> PyTree:
    return state.params, state.model_state


def as_sent(message: Message, client_id: Array, state: ServerState, run_key: Array) -> PyTree:
    """Returns a message that means what it says."""
    del client_id, state, run_key
    return message


class ClientStrategy(NamedTuple):
    """What one kind of client does in a round; the caller maps over clients.

    Attributes:
      client_update: what a client computes and sends.
      decode: what a message means. The default takes the message as it is.
      receives: what a client is sent. The default is the whole model.
      replays: True if messages are scalars from which any party rebuilds the update: they are
        gathered whole and decoded by everyone, instead of being decoded where they arise.
      one_model: True if all clients evaluate the same weights, whatever their ids: several at once
        are then one larger batch.
      has_part: True if clients hold only that part of the model which they receive.
      sent_bytes: bytes of a client's message, where it leaves out what it does not hold; None if
        they are those of the message's shape.
      scalars_twice: tells how much of small differences of losses a coarser precision leaves; None
        where they are computed in float32, or there are none.
    """

    client_update: ClientUpdate
    decode: Decode = as_sent
    receives: Receives = _model
    replays: bool = False
    one_model: bool = False
    has_part: bool = False
    sent_bytes: SentBytes | None = None
    scalars_twice: ScalarsTwice | None = None


class Group(NamedTuple):
    """Clients that do the same in a round; most algorithms have one group.

    Attributes:
      strategy: what they do.
      sample_cohort: who takes part.
      cohort_size: real clients in each cohort.
      forward_passes: single-example forward passes of the group in a round.
      backward_passes: likewise; a backward pass costs about two forward ones.
      eligible: ``i32[E]``, the ids of the clients that may be in a cohort.
      name: tells the groups of a phase apart in reports; "" if there is one.
    """

    strategy: ClientStrategy
    sample_cohort: SampleCohort
    cohort_size: int
    forward_passes: float
    eligible: np.ndarray
    backward_passes: float = 0.0
    name: str = ""

    @property
    def pass_equivalents(self) -> float:
        """Passes of the group in a round, in forward ones: a backward pass counts two."""
        return self.forward_passes + 2 * self.backward_passes


def traced_once(group: Group) -> Group:
    """Returns a group whose clients and messages are traced once for arguments of the same shapes.

    Bills, rounds and replays look at the same functions; their programs are as without it.
    """
    strategy = group.strategy
    hooks = {name: getattr(strategy, name) for name in ("client_update", "decode")}
    once = {name: jax.jit(hook, inline=True) for name, hook in hooks.items()}
    return group._replace(strategy=strategy._replace(**once))


def _no_state(params: Params) -> PyTree:
    del params
    return ()


def _as_reduced(reduced: PyTree, state: ServerState, run_key: Array) -> tuple[Params, PyTree]:
    del run_key
    return reduced, state.strategy_state


def _keep(model_state: ModelState, uploaded: ModelState) -> ModelState:
    del uploaded
    return model_state


class Aggregation(NamedTuple):
    """What becomes of a round's updates; the default descends along their mean.

    Attributes:
      init: the start of ``strategy_state``.
      reduce: ``mean`` of the clients' updates by their weights, or their plain ``sum`` over the
        clients of positive weight, for ratios that the server takes (class means), and solves.
      finalize: what the server optimizer descends along (delta = before - after).
      assign: instead of ``finalize`` and of an optimizer: *sets* the parameters.
      finalize_state: the server's new running statistics.
    """

    init: InitStrategyState = _no_state
    reduce: Literal["mean", "sum"] = "mean"
    finalize: Finalize = _as_reduced
    assign: Assign | None = None
    finalize_state: FinalizeState = _keep


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


class InitState(Protocol):
    """The first state of a phase."""

    def __call__(
        self, params: Params, model_state: ModelState, round_idx: int | Array = 0, /
    ) -> ServerState:
        """Returns it, the optimizer's state fresh; ``round_idx`` rounds were done before."""
        ...


class Round(Protocol):
    """One federated round."""

    def __call__(
        self, state: ServerState, data: FederatedData, run_key: Array, /
    ) -> tuple[ServerState, dict[str, Array], tuple[RoundRecord, ...]]:
        """Returns ``(state, metrics, records)``: ``f32[]`` each, and one record a group."""
        ...


class Apply(Protocol):
    """The server's half of a round, for strategies that replay."""

    def __call__(
        self, state: ServerState, records: tuple[RoundRecord, ...], run_key: Array, /
    ) -> ServerState:
        """Returns the next state from what was sent alone; running statistics stay."""
        ...


class FederatedAlgorithm(NamedTuple):
    """A phase as pure functions; see the protocols of their types."""

    init: InitState
    round: Round
    apply: Apply
