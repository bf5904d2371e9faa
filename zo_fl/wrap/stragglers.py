"""Clients that answer the question of the round before: at the model, with the draws of then.

A phase with stragglers is a phase again, whose strategy state keeps the model of the round before;
its methods see only their own of it. Who is late in which round is drawn by key. In a phase's first
round there is no round before: everyone is in time, as all are for a check.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zo_fl.engine import keys
from zo_fl.engine.errors import ConfigError
from zo_fl.engine.phase import Phase
from zo_fl.engine.strategy import Assign, ClientStrategy, Finalize, as_sent
from zo_fl.engine.types import Array, ClientBatch, ClientResult, Params, PyTree, ServerState


class Remembered(NamedTuple):
    """Strategy state of a phase with stragglers.

    Attributes:
      own: the method's.
      before: ``(params, own)`` of the round before. Running statistics are those of now.
      rounds: ``i32[]`` of the phase, so far.
    """

    own: PyTree
    before: tuple[Params, PyTree]
    rounds: Array


def delay(phase: Phase, share: float) -> Phase:
    """Returns a phase of which some clients are late.

    Args:
      phase: whose clients are in time.
      share: of the clients, in each round.

    Raises:
      ConfigError: all messages stand for the same directions, those of the round.
    """
    if not share:
        return phase
    for group in phase.groups:
        if group.strategy.replays and group.strategy.decode is as_sent:
            raise ConfigError(
                f"faults.straggler is {share:g}, and the server of phase {phase.name} rebuilds the "
                "mean of all messages along one round's directions: it must be 0, or directions "
                "each client's own (seed_policy)"
            )
    method, check = phase.aggregation, phase.check

    def init(params: Params) -> Remembered:
        own = method.init(params)
        # A copy: the program that goes on with the state donates each of its arrays once.
        return Remembered(own, jax.tree.map(jnp.copy, (params, own)), jnp.int32(0))

    def remembering(function: Finalize | Assign) -> Finalize:
        def then(reduced, state: ServerState, run_key) -> tuple[Params, PyTree]:
            kept: Remembered = state.strategy_state
            found, own = function(reduced, _own(state), run_key)
            return found, Remembered(own, (state.params, kept.own), kept.rounds + 1)

        return then

    assign = method.assign
    aggregation = method._replace(
        init=init,
        finalize=remembering(method.finalize),
        assign=None if assign is None else remembering(assign),
    )
    if check is not None:
        is_over = check.is_over
        check = check._replace(phase=_checked(check.phase), is_over=lambda kept: is_over(kept.own))
    return phase._replace(
        groups=tuple(
            group._replace(strategy=_late(group.strategy, share)) for group in phase.groups
        ),
        aggregation=aggregation,
        evaluated=lambda state, data: phase.evaluated(_own(state), data),
        check=check,
    )


def is_late(share: float, state: ServerState, client_id: Array, run_key: Array) -> Array:
    """Returns ``bool[]``: whether a client answers the round before the state's."""
    key = keys.client_key(keys.round_key(run_key, state.round_idx), client_id)
    drawn = jax.random.bernoulli(keys.stream(key, "late"), share)
    return drawn & (state.strategy_state.rounds > 0)


def _late(strategy: ClientStrategy, share: float) -> ClientStrategy:
    def asked(state: ServerState, client_id, run_key) -> ServerState:
        late = is_late(share, state, client_id, run_key)
        kept: Remembered = state.strategy_state
        params, own = jax.tree.map(
            lambda then, now: jnp.where(late, then, now), kept.before, (state.params, kept.own)
        )
        round_idx = state.round_idx - late.astype(jnp.int32)
        return ServerState(params, state.model_state, (), own, round_idx)

    def client_update(state: ServerState, batch: ClientBatch, run_key) -> ClientResult:
        return strategy.client_update(asked(state, batch.client_id, run_key), batch, run_key)

    def decode(message, client_id, state: ServerState, run_key) -> PyTree:
        return strategy.decode(message, client_id, asked(state, client_id, run_key), run_key)

    return _of_own(strategy)._replace(client_update=client_update, decode=decode, one_model=False)


def _checked(phase: Phase) -> Phase:
    """Returns the phase of a check: what is remembered between rounds goes through it."""
    assign = phase.aggregation.assign
    assert assign is not None, "a check assigns"

    def assigns(reduced, state: ServerState, run_key) -> tuple[Params, PyTree]:
        params, own = assign(reduced, _own(state), run_key)
        return params, state.strategy_state._replace(own=own)

    groups = tuple(group._replace(strategy=_of_own(group.strategy)) for group in phase.groups)
    return phase._replace(groups=groups, aggregation=phase.aggregation._replace(assign=assigns))


def _of_own(strategy: ClientStrategy) -> ClientStrategy:
    """Returns a strategy that is given what its phase remembers, and looks at its own of it."""
    update, decode, twice = strategy.client_update, strategy.decode, strategy.scalars_twice
    return strategy._replace(
        client_update=lambda state, *given: update(_own(state), *given),
        decode=lambda message, client_id, state, run_key: decode(
            message, client_id, _own(state), run_key
        ),
        receives=lambda state: strategy.receives(_own(state)),
        scalars_twice=None if twice is None else lambda state, *given: twice(_own(state), *given),
    )


def _own(state: ServerState) -> ServerState:
    """Returns the state as the method knows it."""
    return state._replace(strategy_state=state.strategy_state.own)
