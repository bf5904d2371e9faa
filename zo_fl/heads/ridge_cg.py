"""Ridge regression by conjugate gradients: for features too many for a Gram matrix.

    once:   the high tier sends the second moments of its features;  server: W, the covariance
            within its classes
    then:   client j sends mean h^2, its class means and counts;  server: mean, deviation, cross
            term R = 1/n sum h y^T, centered, P = M^-1 R,  M = W + B + (penalty + shrinkage) I,
            B the covariance between everyone's classes
    then:   server sends P (d x C), client j sends H_j^T H_j P of standardized features H_j,
            server: one step of conjugate gradients for each class, along M^-1 residual

A message is d C numbers, where that of ``ridge`` is d (d + 1) / 2: it pays below d / (2 C)
iterations, and a few will do. The first iteration is a linear discriminant, as in
``gaussian_head``; the others mend what everyone's covariance has and the high tier's has not. The
server holds a matrix of d x d.

A few iterations regularize as a penalty does, and more overfit: every few of them the clients count
what the head so far gets right of their validation examples, the best head is kept, and the method
ends where the count has stopped rising. Every round needs everyone; a client that drops out of one
leaves an inexact step.

Sources: DiSCO (Zhang and Xiao 2015, arXiv 1501.00263) for a preconditioner from one party's data;
that class means make its part between classes everyone's is this project's own. The iterations
themselves are in ``conjugate``.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp

from zo_fl.engine.algorithm import (
    Client,
    ClientBatch,
    ClientResult,
    Phase,
    Problem,
    ServerState,
    Stop,
)
from zo_fl.engine.fields import Block, Field
from zo_fl.engine.keys import Keys
from zo_fl.engine.server import assign
from zo_fl.engine.types import Array, ModelState, Params, PyTree
from zo_fl.heads import closed_form, conjugate, features, messages, steps
from zo_fl.heads.closed_form import Moments
from zo_fl.heads.conjugate import Solution
from zo_fl.heads.features import Extractor
from zo_fl.heads.messages import Encoded
from zo_fl.heads.steps import Setup
from zo_fl.wrap.stop import require_validation

PATIENCE = 2  # counts without a better one after which it ends

BLOCKS: dict[str, Block] = {
    "ridge_cg": {
        "num_rounds": Field(200, "iterations, at most", at_least=0),
        "check_every": Field(
            2, "iterations between counts on validation examples; 0 = no counts", at_least=0
        ),
        "penalty": Field(1e-3, "penalty, for features of variance 1", at_least=0),
        "shrinkage": Field(0.03, "addition to the preconditioner's diagonal", above=0),
        "calibrate": steps.CALIBRATE,
        "encoding": messages.ENCODING,
        "cache": features.CACHE,
        "microbatch": features.MICROBATCH,
    }
}


class Iterating(NamedTuple):
    """How clients and server iterate: ``look`` computes features, the rest are config fields."""

    look: Extractor
    encoding: str
    penalty: float
    shrinkage: float
    check_every: int

    @property
    def encoding_of_sizes(self) -> str:
        """Deviations divide: those of small features need digits, which halves have."""
        return "float32" if self.encoding == "float32" else "float16"


def phases(problem: Problem, *, ridge_cg: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Returns first sums, iterations and what follows them; ``ridge_cg`` is the config block.

    Raises:
      FieldError: validation examples are asked for, and there are none.
    """
    block, rounds, every = ridge_cg, ridge_cg["num_rounds"], ridge_cg["check_every"]
    look = features.extractor(problem, block["microbatch"])
    how = Iterating(look, block["encoding"], block["penalty"], block["shrinkage"], every)
    keeping = features.keeping(look, on_client=block["cache"])
    start = partial(conjugate.nothing, look.dim, look.num_classes)
    setup = Setup("ridge_cg", problem, look, keeping, min(rounds, 1), start)
    # What clients keep includes the examples that they are asked about later.
    also = problem.validation if every and block["cache"] else None
    first = Client(partial(_send_first, how), partial(_read_first, how), one_model=True)
    first = first._replace(sent_bytes=partial(_first_bytes, how))
    iterate = Client(
        partial(_send_product, how),
        partial(_read_product, how),
        lambda state: state.strategy_state.direction,
        one_model=True,
    )
    begin = assign(partial(_begin, how), init=setup.continued)
    step = assign(partial(_step, how), init=setup.continued)
    passes = features.passes(0 if block["cache"] else 1)
    iterations = setup.phase("iterations", rounds, iterate, step, passes)
    if every and rounds:
        require_validation(problem, "check_every", f"={every}")
        iterations = iterations._replace(stop=_stop(look, every))
    return steps.in_order(
        setup,
        steps.high_tier_moments(setup, "moments", _learn_from_high),
        setup.phase("sums", setup.once, first, begin, features.passes(also=also)),
        iterations,
        *((steps.temperature(setup),) if block["calibrate"] else ()),
    )


def _learn_from_high(moments: Moments, state: ServerState, of_round: Keys):
    within = closed_form.within_covariance(moments)
    return state.params, state.strategy_state._replace(factor=within)


def _send_first(how: Iterating, state: ServerState, batch: ClientBatch, own: Keys) -> ClientResult:
    """Returns the root of the mean square of each feature, class means and counts."""
    squares = lambda seen: jnp.sum(seen**2, axis=0)  # noqa: E731
    sums = features.sums(how.look, state, batch, squares)
    sizes = jnp.sqrt(sums.gram / jnp.maximum(sums.class_counts.sum(), 1))
    encoded = messages.encode(how.encoding_of_sizes, sizes)
    message = encoded, messages.encode_means(how.encoding, sums)
    return ClientResult(message, features.weight(batch, sums), {}, {})


def _read_first(how: Iterating, message: PyTree, state: ServerState, own: Keys) -> Moments:
    encoded, of_classes = message
    sums = messages.decode_means(how.encoding, how.look.dim, of_classes)
    sizes = messages.decode(how.encoding_of_sizes, encoded, how.look.dim)
    return sums._replace(gram=sizes**2 * sums.class_counts.sum())


def _first_bytes(how: Iterating, batch: ClientBatch) -> Array:
    dim, counts = how.look.dim, features.class_counts(how.look, batch)
    of_classes = messages.means_bytes(how.encoding, dim, counts)
    return of_classes + messages.encoded_bytes(how.encoding_of_sizes, dim)


def _begin(how: Iterating, sums: Moments, state: ServerState, of_round: Keys):
    diagonal = how.penalty + how.shrinkage
    return state.params, conjugate.begin(state.strategy_state, sums, diagonal)


def _send_product(how: Iterating, state, batch, own) -> ClientResult:
    known: Solution = state.strategy_state

    def add(sums, seen, labels):
        real = (labels.sum(-1) > 0)[:, None]
        white = jnp.where(real, (seen - known.mean[None]) * known.scale[None], 0.0)
        ahead = closed_form.product(white, known.direction)
        return sums + closed_form.product(white.T, ahead)

    zeros = jnp.zeros((how.look.dim, how.look.num_classes))
    sums = features.sum_over(how.look, state, batch, add, zeros)
    message = messages.encode(how.encoding, sums.T)  # one scale a class
    return ClientResult(message, features.weight(batch, sums), {}, {})


def _read_product(how: Iterating, message: Encoded, state: ServerState, own: Keys) -> Array:
    return messages.decode(how.encoding, message, how.look.dim).T


def _step(how: Iterating, sums: Array, state: ServerState, of_round: Keys):
    known: Solution = state.strategy_state
    ahead = sums / known.num_examples + how.penalty * known.direction
    new = conjugate.step(known, ahead)
    # Without counts the model has the latest head, with them the best.
    return state.params if how.check_every else _with_head(how.look, state.params, new), new


def _with_head(look: Extractor, params: Params, known: Solution) -> Params:
    return params | {look.task.head: conjugate.head(known)}


def _stop(look: Extractor, every: int) -> Stop:
    """Returns the rule by which iterations end, and the best head is kept."""

    def asked(state: ServerState, data) -> tuple[Params, ModelState]:
        return _with_head(look, state.params, state.strategy_state), state.model_state

    def keep(state: ServerState) -> ServerState:
        return state._replace(params=_with_head(look, state.params, state.strategy_state))

    sent = lambda state: conjugate.head(state.strategy_state)  # noqa: E731
    return Stop(every, PATIENCE, asked=asked, sent=sent, keep=keep)
