"""Fewer numbers a feature vector: directions on which everyone sees features.

``principal`` ones are found by the high tier, which sends the second moments of its features once;
``random`` ones are drawn from a key, which costs nothing. Low-resource clients receive the
directions and send nothing.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from zo_fl.engine import keys
from zo_fl.engine.errors import FieldError
from zo_fl.engine.fields import Block, Field
from zo_fl.engine.phase import Keeping, Participation, Phase, Problem, make_group
from zo_fl.engine.strategy import Aggregation, Assign, ClientStrategy, InitStrategyState
from zo_fl.engine.types import ClientBatch, ClientResult, ServerState
from zo_fl.heads import closed_form, features
from zo_fl.heads.closed_form import Basis
from zo_fl.heads.features import Looking

BASES = ("principal", "random")
FLOOR = 0.02  # share of the largest variance: how far principal directions are whitened


class Sketch(NamedTuple):
    """Fields of a config block.

    Attributes:
      sketch: numbers a feature vector is sent in; 0 = all features as they are.
      basis: one of ``BASES``.
    """

    sketch: int
    basis: str


SKETCH: Block = {
    "sketch": Field(0, "numbers a feature vector is sent in; 0 = all features", at_least=0),
    "basis": Field("principal", "of the high tier's features, or random, from a key", BASES),
}


def check(sketch: Sketch, dim: int) -> None:
    """Checks a sketch against the number of features.

    Raises:
      FieldError: it is larger.
    """
    if sketch.sketch > dim:
        raise FieldError(
            "sketch", f"={sketch.sketch} is more than the model's {dim} features; allowed: 0 to it"
        )


def check_pairs(encoding: str, size: int) -> None:
    """Checks that vectors of ``size`` numbers can be sent two numbers a byte.

    Raises:
      FieldError: an odd size in ``int4``.
    """
    if encoding == "int4" and size % 2:
        raise FieldError("encoding", f"='int4' packs two numbers a byte, and there are {size}")


def no_basis(sketch: Sketch, dim: int) -> Basis | tuple[()]:
    """Returns what a strategy state holds before there is a basis: none at all without a sketch."""
    if not sketch.sketch:
        return ()
    return Basis(jnp.zeros(dim), jnp.zeros((dim, sketch.sketch)))


def drawn(sketch: Sketch, dim: int, state: ServerState, run_key) -> Basis | None:
    """Returns the basis that clients use: the state's, one from the key, or none."""
    if not sketch.sketch:
        return None
    if sketch.basis == "random":
        return closed_form.random_basis(keys.stream(run_key, "sketch"), dim, sketch.sketch)
    return state.strategy_state.basis


def received(sketch: Sketch, state: ServerState) -> Any:
    """Returns what the basis adds to what clients receive."""
    return state.strategy_state.basis if sketch.sketch and sketch.basis == "principal" else ()


def phase(
    problem: Problem,
    name: str,
    rounds: int,
    looking: Looking,
    init: InitStrategyState,
    assign: Assign,
    keeping: Keeping,
) -> Phase:
    """Returns the phase in which the high tier sends the second moments of its features.

    Args:
      problem: task and clients.
      name: the phase's.
      rounds: 1, or 0 for none.
      looking: how clients compute features.
      init: of the strategy state.
      assign: what the server makes of the ``Moments``.
      keeping: of the method.
    """
    task = problem.task

    def client_update(state: ServerState, batch: ClientBatch, run_key) -> ClientResult:
        del run_key
        sums = features.moments(task, looking, state, batch)
        return ClientResult(sums, features.weight(batch, sums), {}, {})

    strategy = ClientStrategy(client_update, one_model=True)
    group = make_group(problem, strategy, features.passes(looking), Participation(tiers="high"))
    aggregation = Aggregation(init, "sum", assign=assign)
    return Phase(name, rounds, (group,), aggregation, None, keeping=keeping)


def basis_of(sketch: Sketch, moments: closed_form.Moments) -> Basis:
    """Returns the principal directions of the features that were summed up."""
    mean, covariance = closed_form.mean_and_covariance(moments)
    return closed_form.principal_basis(mean, covariance, sketch.sketch, FLOOR)
