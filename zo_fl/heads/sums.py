"""Heads from sums that every client sends once, in ``ridge`` and ``gaussian_head``.

    client j:  sums over its examples, encoded
    server:    everyone's sums so far -> one head for each candidate setting

Messages add up, so a client may join late, and the server can subtract the sums of a client that
asks to be forgotten. A client that is drawn twice is counted once. Until clients choose a head, the
model has the middle one.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zo_fl.engine.algorithm import Client, ClientBatch, ClientResult, Phase, Problem, ServerState
from zo_fl.engine.keys import Keys
from zo_fl.engine.server import assign
from zo_fl.engine.types import Array, Params
from zo_fl.heads import closed_form, features, messages, steps
from zo_fl.heads.closed_form import Basis, Heads, MaybeBasis, Moments
from zo_fl.heads.features import Extractor
from zo_fl.heads.messages import Message
from zo_fl.heads.steps import Setup
from zo_fl.wrap.privacy import Release


class Sums(NamedTuple):
    """The server's memory between rounds.

    Attributes:
      sums: of everyone so far, of projected features if there is a basis.
      joined: ``f32[K]``, 1 for each client in the sums.
      basis: of the sketch, or ``()``.
      covariance: ``f32[k, k]``, the high tier's within classes; ``()`` where no method needs it.
      heads: a candidate for each setting.
    """

    sums: Moments
    joined: Array
    basis: MaybeBasis
    covariance: Array | tuple[()]
    heads: Heads


class Solver(NamedTuple):
    """A method that makes heads of sums.

    Attributes:
      has_gram: whether the sums have a Gram matrix.
      candidates: heads that ``solve`` makes.
      sums: ``(state, basis, batch, keys) -> Moments`` of a client.
      encode: ``Moments -> message``.
      decode: ``message -> Moments``.
      solve: ``(Moments of everyone, covariance) -> Heads`` of the coordinates that were summed.
      takes_covariance: whether the high tier sends a covariance within classes for ``solve``.
      moved: whether sums are of features from those of a blank example on; not where a bound is
        for the features themselves.
    """

    extractor: Extractor
    has_gram: bool
    candidates: int
    sums: Callable[[ServerState, MaybeBasis, ClientBatch, Keys], Moments]
    encode: Callable[[Moments], Message]
    decode: Callable[[Message], Moments]
    solve: Callable[[Moments, Any], Heads]
    takes_covariance: bool = False
    moved: bool = True

    def basis(self, state: ServerState) -> MaybeBasis:
        """Returns the basis of the sums: that of the sketch, if there is one."""
        sketch: MaybeBasis = state.strategy_state.basis
        return sketch or (features.around_blank(self.extractor, state) if self.moved else ())


def phases(
    name: str,
    problem: Problem,
    solver: Solver,
    block: Mapping[str, Any],
    release: Release | None = None,
) -> tuple[Phase, ...]:
    """Returns the phase of the sums and its neighbours.

    Args:
      name: the method's.
      problem: task and clients.
      solver: its own.
      block: has ``num_rounds``, ``calibrate``, ``encoding`` and ``cohorts.FIELDS``.
      release: see ``Group``.

    Raises:
      FieldError: a cohort that cannot be drawn, or no validation examples to calibrate on.
    """
    extractor, rounds = solver.extractor, block["num_rounds"]
    start = partial(_start, solver, len(problem.clients.client_sizes))
    setup = Setup(name, problem, extractor, features.keeping(extractor), rounds, start)
    client = Client(
        partial(_update, solver),
        partial(_decode, solver),
        lambda state: (state.params, state.model_state, state.strategy_state.basis),
        # Means add up with counts alone, rounded numbers with scales.
        read_alone=not solver.has_gram or block["encoding"] != "float32",
        one_model=True,
        # With noise all columns travel: those that do not would show which labels there are.
        sent_bytes=partial(_sent_bytes, solver) if release is None else None,
    )
    learns = bool(extractor.sketch) or solver.takes_covariance
    init = setup.continued if learns else setup.fresh
    server = assign(partial(_add_and_solve, solver), init=init)._replace(note=_note_joined)
    learn = partial(_learn_from_high, extractor)
    own = "sums" if solver.has_gram else "means"
    passes = features.passes(more=solver.moved and not extractor.sketch)
    return steps.in_order(
        setup,
        *((steps.high_tier_moments(setup, "basis", learn),) if learns else ()),
        setup.phase(own, rounds, client, server, passes, block, release=release),
        *((steps.best_head(setup),) if solver.candidates > 1 else ()),
        *((steps.temperature(setup),) if block["calibrate"] else ()),
    )


def _start(solver: Solver, population: int) -> Sums:
    extractor, count = solver.extractor, solver.candidates
    classes = extractor.task.num_classes
    dim, size, sketch = extractor.dim, extractor.size, extractor.sketch
    return Sums(
        _no_sums(solver),
        joined=jnp.zeros(population),
        basis=Basis(jnp.zeros(dim), jnp.zeros((dim, sketch))) if sketch else (),
        covariance=jnp.zeros((size, size)) if solver.takes_covariance else (),
        heads=Heads(jnp.zeros((count, dim, classes)), jnp.zeros((count, classes))),
    )


def _no_sums(solver: Solver) -> Moments:
    size, classes = solver.extractor.size, solver.extractor.task.num_classes
    gram = jnp.zeros(size * (size + 1) // 2) if solver.has_gram else ()
    return Moments(gram, jnp.zeros((size, classes)), jnp.zeros(classes))


def _learn_from_high(extractor: Extractor, moments: Moments, state: ServerState, of_round: Keys):
    """Returns a state with the basis and the covariance within classes that the method uses."""
    known: Sums = state.strategy_state
    basis, covariance = known.basis, known.covariance
    if basis:
        origin = features.around_blank(extractor, state).origin
        basis = closed_form.principal_basis(moments, extractor.sketch, origin)
    if not isinstance(covariance, tuple):
        covariance = closed_form.within_covariance(moments)
        if basis:
            right = closed_form.product(covariance, basis.directions)
            covariance = closed_form.product(basis.directions.T, right)
    return state.params, known._replace(basis=basis, covariance=covariance)


def _update(solver: Solver, state: ServerState, batch: ClientBatch, own: Keys) -> ClientResult:
    sums = solver.sums(state, solver.basis(state), batch, own)
    found = features.result(batch, solver.encode(sums), sums)
    is_new = state.strategy_state.joined[batch.client_id] == 0
    return found._replace(weight=found.weight * is_new)


def _sent_bytes(solver: Solver, batch: ClientBatch) -> Array:
    counts = features.class_counts(solver.extractor, batch)
    return messages.num_bytes(solver.encode, jax.eval_shape(lambda: _no_sums(solver)), counts)


def _decode(solver: Solver, message: Message, state: ServerState, own: Keys) -> Moments:
    return solver.decode(message)


def _note_joined(known: Sums, client_ids: Array, counted: Array) -> Sums:
    return known._replace(joined=known.joined.at[client_ids].max(counted.astype(jnp.float32)))


def _add_and_solve(solver: Solver, new: Moments, state: ServerState, of_round: Keys):
    before: Sums = state.strategy_state
    sums = jax.tree.map(jnp.add, before.sums, new)
    heads = closed_form.unfold(solver.basis(state), solver.solve(sums, before.covariance))
    after = before._replace(sums=sums, heads=heads)
    return with_middle(solver.extractor.task.head, state, heads, sums.class_counts), after


def with_middle(head: str, state: ServerState, heads: Heads, class_counts: Array) -> Params:
    """Returns parameters with the middle candidate, until one is chosen.

    Rounded sums may need a larger penalty: where the middle candidate is not finite, the nearest
    finite one takes its place, of two the later. If none is finite, neither is the head, and the
    run stops. Without any example in ``class_counts`` ``f32[C]`` the layer ``head`` stays.
    """
    count = heads.bias.shape[0]
    away = np.arange(count) - count // 2
    usable = jnp.isfinite(heads.kernel).all((1, 2)) & jnp.isfinite(heads.bias).all(1)
    middle = heads.at(jnp.argmin(jnp.where(usable, 2 * np.abs(away) - (away > 0), 2 * count)))
    anyone = class_counts.sum() > 0
    chosen = jax.tree.map(lambda new, old: jnp.where(anyone, new, old), middle, state.params[head])
    return state.params | {head: chosen}
