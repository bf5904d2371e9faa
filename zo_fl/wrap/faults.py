"""A federation that misbehaves: clients that stay silent, send NaN, or lie.

    dropout      a client sends nothing
    nan          all its numbers are NaN
    byzantine    the same clients in every round lie, each as ``attack`` says:
                   sign_flip  what they send times -1
                   scale      times 10
                   labels     they learn class C - 1 - y for y

Who does so is drawn by key, for each client and round anew (the liars once), so that a run can be
repeated, resumed and replayed. A phase with faults is a phase again, its clients wrapped: neither
methods nor the round know. What the server does about it is ``robust``; with any fault it is
tolerant: a round goes on without clients that did not answer with numbers, and one that nobody
answered leaves the state as it was.

Traffic and passes are billed as though all had answered.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zo_fl.engine import keys, trees
from zo_fl.engine.algorithm import Client, ClientBatch, ClientResult, Phase, ServerState
from zo_fl.engine.fields import Block, Field
from zo_fl.engine.keys import Keys
from zo_fl.engine.types import Array, PyTree, Task
from zo_fl.wrap import privacy


def _times(factor: float) -> Callable[[PyTree], PyTree]:
    """Returns ``message -> message`` times a factor, counts too: as though of so many examples."""

    def one(leaf):
        if leaf.dtype.itemsize < 4 and jnp.issubdtype(leaf.dtype, jnp.integer):
            return leaf  # codes, which mean something beside a scale that is scaled
        return (factor * leaf).astype(leaf.dtype)

    return lambda message: jax.tree.map(one, message)


# name -> message -> what is sent instead
ATTACKS: dict[str, Callable[[PyTree], PyTree] | None] = {
    "sign_flip": _times(-1.0),
    "scale": _times(10.0),
    "labels": None,  # no change of a message
}

BLOCK: Block = {
    "dropout": Field(0.0, "share of clients a round that send nothing", at_least=0, at_most=1),
    "nan": Field(0.0, "share of clients a round that send NaN", at_least=0, at_most=1),
    "byzantine": Field(0.0, "share of all clients that lie in every round", at_least=0, at_most=1),
    "attack": Field("sign_flip", "lie that they tell", tuple(ATTACKS)),
}


class Faults(NamedTuple):
    """The values of ``BLOCK``."""

    dropout: float
    nan: float
    byzantine: float
    attack: str


class Fate(NamedTuple):
    """The faults of a client in a round: ``bool[]`` each."""

    silent: Array
    broken: Array
    lies: Array


def inject(phase: Phase, task: Task, faults: Faults, num_clients: int) -> Phase:
    """Returns the phase with clients that misbehave; ``num_clients`` are in the federation.

    Raises:
      ConfigError: clients' shares of the noise would be lost.
    """
    for field in ("dropout", "nan", "byzantine"):
        if share := getattr(faults, field):
            privacy.check_shares(phase, f"faults.{field}", share)
    if not any((faults.dropout, faults.nan, faults.byzantine)):
        return phase
    groups = tuple(
        group._replace(client=_misbehaving(group.client, task, faults, num_clients))
        for group in phase.groups
    )
    reducer = phase.server.reducer._replace(tolerant=True)
    return phase._replace(groups=groups, server=phase.server._replace(reducer=reducer))


def fate(faults: Faults, num_clients: int, own: Keys) -> Fate:
    """Draws the faults of a client in a round, by its keys ``own``."""
    draws = jax.random.uniform(keys.stream(own.client, "faults"), (2,))
    silent, broken = draws < jnp.array((faults.dropout, faults.nan))
    everyone = jax.random.permutation(keys.stream(own.run, "byzantine"), num_clients)
    liars = everyone[: round(faults.byzantine * num_clients)]
    return Fate(silent, broken, jnp.any(liars == own.client_id))


def _misbehaving(client: Client, task: Task, faults: Faults, num_clients: int) -> Client:
    attack = ATTACKS[faults.attack]

    def update(state: ServerState, batch: ClientBatch, own: Keys) -> ClientResult:
        drawn = fate(faults, num_clients, own)
        if attack is None:
            labels = task.labels(batch.examples)
            lie = jnp.where(drawn.lies, task.num_classes - 1 - labels, labels)
            batch = batch._replace(examples=task.relabel(batch.examples, lie))
        result = client.update(state, batch, own)
        message = result.message
        if attack is not None and faults.byzantine:
            lie = attack(message)
            message = jax.tree.map(lambda a, b: jnp.where(drawn.lies, a, b), lie, message)
        sent = result._replace(message=message, weight=())
        sent = trees.scale_floats(jnp.where(drawn.broken, jnp.nan, 1.0), sent)
        # Who is silent has no numbers, good or bad.
        sent = jax.tree.map(lambda leaf: jnp.where(drawn.silent, jnp.zeros_like(leaf), leaf), sent)
        return sent._replace(weight=jnp.where(drawn.silent, 0.0, result.weight))

    return client._replace(update=update)
