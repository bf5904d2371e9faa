"""Heads from sums that every client sends once, in ``ridge`` and ``gaussian_head``.

    client j:  sums over its examples, encoded
    server:    everyone's sums so far -> one head for each candidate setting

Messages add up, so a late joiner adds its own, and those of a client that asks to be forgotten can
be subtracted. A client that is drawn again is not counted again. Until clients choose a head, the
model has the middle one.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zo_fl.engine.algorithm import Client, ClientBatch, ClientResult, Phase, ServerState
from zo_fl.engine.keys import Keys
from zo_fl.engine.server import assign
from zo_fl.engine.types import Array, Params, PyTree
from zo_fl.heads import closed_form, features, steps
from zo_fl.heads.closed_form import Heads, Moments
from zo_fl.heads.features import Extractor
from zo_fl.heads.steps import Setup
from zo_fl.wrap.privacy import Release


class Solver(NamedTuple):
    """A method that makes heads of sums.

    The method's strategy state has ``sums``, everyone's so far, ``joined``, ``f32[K]``, 1 for
    whoever is in them, ``basis`` and ``heads``.

    Attributes:
      look: how clients compute features.
      sums: ``(state, batch, keys) -> Moments`` of a client.
      encode: ``Moments -> message``.
      decode: ``message -> Moments``.
      num_bytes: ``class counts f32[C] -> i32[]`` bytes of a message.
      solve: ``(Moments of everyone, strategy state) -> Heads`` of projected features.
    """

    look: Extractor
    sums: Callable[[ServerState, ClientBatch, Keys], Moments]
    encode: Callable[[Moments], PyTree]
    decode: Callable[[PyTree], Moments]
    num_bytes: Callable[[Array], Array]
    solve: Callable[[Moments, Any], Heads]


def phases(
    setup: Setup,
    solver: Solver,
    name: str,
    block: Mapping[str, Any],
    learn: Callable | None,
    chooses: bool,
    release: Release | None = None,
) -> tuple[Phase, ...]:
    """Returns the phase of the sums, and those before and after it.

    Args:
      setup: the method's.
      solver: the method's.
      name: the phase's.
      block: has ``num_rounds``, ``calibrate`` and ``cohorts.FIELDS``.
      learn: see ``steps.high_tier_moments``; None where the high tier does nothing first.
      chooses: whether there is more than one head.
      release: see ``Group``.
    """
    update, decode = partial(_update, solver), partial(_decode, solver)
    client = Client(update, decode, _receives, one_model=True)
    client = client._replace(sent_bytes=partial(_sent_bytes, solver))
    init = setup.continued if learn else setup.fresh
    server = assign(partial(_add_and_solve, solver), init=init)
    main = setup.phase(name, block["num_rounds"], client, server, features.passes(), block)
    main = main._replace(groups=(main.groups[0]._replace(release=release),))
    before = (steps.high_tier_moments(setup, "basis", learn),) if learn else ()
    after = (steps.best_head(setup),) if chooses else ()
    last = (steps.temperature(setup),) if block["calibrate"] else ()
    return steps.in_order(setup, *before, main, *after, *last)


def _update(solver: Solver, state: ServerState, batch: ClientBatch, own: Keys) -> ClientResult:
    sums = solver.sums(state, batch, own)
    is_new = state.strategy_state.joined[batch.client_id] == 0
    weight = features.weight(batch, sums) * is_new
    return ClientResult(solver.encode(sums), weight, model_state={}, metrics={})


def _decode(solver: Solver, message: PyTree, state: ServerState, own: Keys) -> PyTree:
    joined = jnp.zeros_like(state.strategy_state.joined).at[own.client_id].set(1.0)
    return solver.decode(message), joined


def _sent_bytes(solver: Solver, batch: ClientBatch) -> Array:
    return solver.num_bytes(features.class_counts(solver.look, batch))


def _receives(state: ServerState) -> PyTree:
    return state.params, state.model_state, state.strategy_state.basis


def _add_and_solve(solver: Solver, reduced: PyTree, state: ServerState, of_round: Keys):
    before = state.strategy_state
    sums, joined = jax.tree.map(jnp.add, (before.sums, before.joined), reduced)
    heads = closed_form.unfold(before.basis, solver.solve(sums, before))
    after = before._replace(sums=sums, joined=joined, heads=heads)
    return with_middle(solver.look.task.head, state, heads, sums.class_counts), after


def with_middle(head: str, state: ServerState, heads: Heads, class_counts: Array) -> Params:
    """Returns parameters with the middle one of some candidates, until one is chosen.

    If that one is not finite, as rounded sums may need a larger penalty, the nearest finite one
    takes its place, of two the later. If none is finite, neither is the head, which stops a run.

    Args:
      head: name of the last layer.
      state: the server's, whose head stays while nothing was counted.
      heads: the candidates.
      class_counts: ``f32[C]`` examples that they were made from.
    """
    count = heads.bias.shape[0]
    away = np.arange(count) - count // 2
    usable = jnp.isfinite(heads.kernel).all((1, 2)) & jnp.isfinite(heads.bias).all(1)
    middle = jnp.argmin(jnp.where(usable, 2 * np.abs(away) - (away > 0), 2 * count))
    anyone = class_counts.sum() > 0
    old = state.params[head]
    kernel = jnp.where(anyone, heads.kernel[middle], old["kernel"])
    bias = jnp.where(anyone, heads.bias[middle], old["bias"])
    return state.params | {head: {"kernel": kernel, "bias": bias}}
