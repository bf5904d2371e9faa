"""A federation that misbehaves: clients that stay silent, answer late, send NaN, or lie.

    dropout      a client sends nothing
    straggler    it answers the question of the round before (``stragglers``)
    nan          all its numbers are NaN
    byzantine    the same clients in every round lie, each as ``attack`` says:
                   sign_flip  what they send times -strength
                   scale      times strength
                   noise      Gaussian, of strength times the root mean square of what they send
                   labels     they learn class C - 1 - y for y

Who does so is drawn by key, for each client and round anew (the liars once), so that a run can be
repeated, resumed and replayed. A phase with faults is a phase again, its clients' strategies
wrapped: neither methods nor the round know. What the server does about it is ``core.robust``; with
any fault it is tolerant: a round goes on without clients that did not answer with numbers, and one
that nobody answered leaves the state as it was.

Traffic and passes are billed as though all had answered.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zo_fl.engine import keys, robust
from zo_fl.engine.fields import Block, Field
from zo_fl.engine.phase import Phase
from zo_fl.engine.strategy import ClientStrategy
from zo_fl.engine.task import Task
from zo_fl.engine.types import Array, ClientBatch, ClientResult, PyTree, ServerState
from zo_fl.heads import features
from zo_fl.wrap import stragglers

LABELS = "labels"  # the attack that is no change of a message


def _sign_flip(message: PyTree, key: Array, strength: float) -> PyTree:
    return _scale(message, key, -strength)


def _scale(message: PyTree, key: Array, strength: float) -> PyTree:
    del key

    def one(leaf):
        if leaf.dtype.itemsize < 4 and jnp.issubdtype(leaf.dtype, jnp.integer):
            return leaf  # codes, which mean something beside a scale that is scaled
        return (strength * leaf).astype(leaf.dtype)  # counts too: as though of so many examples

    return jax.tree.map(one, message)


def _noise(message: PyTree, key: Array, strength: float) -> PyTree:
    leaves, treedef = jax.tree.flatten(message)
    noise = [
        (strength * jnp.sqrt(jnp.mean(leaf**2)) * jax.random.normal(own, leaf.shape)).astype(
            leaf.dtype
        )
        for own, leaf in zip(jax.random.split(key, len(leaves)), leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, noise)


# name -> (message, key[], strength) -> what is sent instead
ATTACKS: dict[str, Callable[[PyTree, Array, float], PyTree] | None] = {
    "sign_flip": _sign_flip,
    "scale": _scale,
    "noise": _noise,
    LABELS: None,
}

BLOCK: Block = {
    "dropout": Field(0.0, "share of clients a round that send nothing", at_least=0, at_most=1),
    "straggler": Field(0.0, "share that answer the round before", at_least=0, at_most=1),
    "nan": Field(0.0, "share that send NaN", at_least=0, at_most=1),
    "byzantine": Field(0.0, "share of all clients that lie in every round", at_least=0, at_most=1),
    "attack": Field("sign_flip", "how they lie: zo_fl/wrap/faults.py", tuple(ATTACKS)),
    "strength": Field(1.0, "of the lie", at_least=0),
}


class Faults(NamedTuple):
    """Fields of the config block ``faults``; ``BLOCK`` says what they mean."""

    dropout: float
    straggler: float
    nan: float
    byzantine: float
    attack: str
    strength: float

    @property
    def happen(self) -> bool:
        """Whether there are any."""
        return any((self.dropout, self.straggler, self.nan, self.byzantine))


class Fate(NamedTuple):
    """What becomes of a client in a round: ``bool[]`` each."""

    silent: Array
    broken: Array
    lies: Array


def inject(phase: Phase, task: Task, faults: Faults, num_clients: int) -> Phase:
    """Returns a phase whose clients misbehave.

    Args:
      phase: whose clients behave.
      task: knows what labels are.
      faults: how many do what.
      num_clients: of the federation.
    """
    if not faults.happen:
        return phase
    return _misbehave(stragglers.delay(phase, faults.straggler), task, faults, num_clients)


def fate(
    faults: Faults, num_clients: int, run_key: Array, round_idx: Array, client_id: Array
) -> Fate:
    """Returns what becomes of a client in a round.

    Args:
      faults: how many do what.
      num_clients: of the federation.
      run_key: ``key[]``.
      round_idx: ``i32[]`` rounds done before.
      client_id: ``i32[]``.
    """
    key = keys.client_key(keys.round_key(run_key, round_idx), client_id)
    draws = jax.random.uniform(keys.stream(key, "faults"), (2,))
    silent, broken = draws < jnp.array((faults.dropout, faults.nan))
    everyone = jax.random.permutation(keys.stream(run_key, "byzantine"), num_clients)
    liars = everyone[: round(faults.byzantine * num_clients)]
    return Fate(silent, broken, jnp.any(liars == client_id))


def _misbehave(phase: Phase, task: Task, faults: Faults, num_clients: int) -> Phase:
    groups = tuple(
        group._replace(strategy=_wrapped(group.strategy, task, faults, num_clients))
        for group in phase.groups
    )
    check = phase.check
    if check is not None:
        check = check._replace(phase=_misbehave(check.phase, task, faults, num_clients))
    return phase._replace(groups=groups, check=check, robust=phase.robust._replace(tolerant=True))


def _wrapped(
    strategy: ClientStrategy, task: Task, faults: Faults, num_clients: int
) -> ClientStrategy:
    """Returns what a client does that may misbehave."""
    attack = ATTACKS[faults.attack]

    def client_update(state: ServerState, batch: ClientBatch, run_key) -> ClientResult:
        own = fate(faults, num_clients, run_key, state.round_idx, batch.client_id)
        if attack is None:
            labels = features.labels(task, batch.examples)
            lie = jnp.where(own.lies, task.num_classes - 1 - labels, labels)
            batch = batch._replace(examples=features.relabel(task, batch.examples, lie))
        result = strategy.client_update(state, batch, run_key)
        message = result.message
        if attack is not None and faults.byzantine:
            key = keys.client_key(keys.round_key(run_key, state.round_idx), batch.client_id)
            lie = attack(message, keys.stream(key, "attack"), faults.strength)
            message = jax.tree.map(lambda a, b: jnp.where(own.lies, a, b), lie, message)
        sent = (message, result.model_state, result.metrics)
        sent = robust.scale(jnp.where(own.broken, jnp.nan, 1.0), sent)
        # Who is silent has no numbers, good or bad.
        sent = jax.tree.map(lambda leaf: jnp.where(own.silent, jnp.zeros_like(leaf), leaf), sent)
        weight = jnp.where(own.silent, 0.0, result.weight)
        return ClientResult(sent[0], weight, sent[1], sent[2])

    return strategy._replace(client_update=client_update)
