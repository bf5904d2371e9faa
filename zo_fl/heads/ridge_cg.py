"""Ridge regression by conjugate gradients: for features too many for a Gram matrix.

The normal equations of ``closed_form.ridge`` for all classes side by side are ``A W = R`` with

    A = 1/n sum x x^T + penalty I,   R = 1/n sum x y^T,   x = (h - mean) / deviation,

and the server knows no more of A than its products with a few vectors:

    once:   the high tier sends second moments of its features, or rows that have them;
            server: W, the covariance within its classes
    then:   client j sends mean h^2, its class means and counts, of features from those of a blank
            image on;  server: mean, deviation, R,
            P = M^-1 R,  M = W + B + (penalty + shrinkage) I,  B the covariance between everyone's
            classes
    then:   server sends P (d x C), client j sends X_j^T X_j P,
            server: one step of conjugate gradients for each class, along M^-1 residual

A message has d C numbers, one of ``ridge`` d (d + 1) / 2. The method pays below d / (2 C)
iterations, and a few will do. The first iteration is a linear discriminant, as in
``gaussian_head``; the others correct for the difference between everyone's covariance and the high
tier's. ``preconditioner`` says what the server holds of M.

A few iterations regularize as a penalty does, and more overfit. So every few iterations the clients
count the validation examples that the latest head gets right. The server keeps the best head, and
the method ends when the count stops rising. Every round needs everyone; a client that drops out of
one leaves an inexact step.

Sources: Hestenes and Stiefel 1952; DiSCO (Zhang and Xiao 2015, arXiv 1501.00263) for a
preconditioner from one party's data. To take its part between classes from everyone's class means
is this project's own.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

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
from zo_fl.engine.types import Array, Params
from zo_fl.heads import closed_form, features, messages, preconditioner, steps
from zo_fl.heads.closed_form import Moments
from zo_fl.heads.features import Extractor
from zo_fl.heads.messages import Encoded, Message
from zo_fl.heads.preconditioner import HighTier, Preconditioner
from zo_fl.heads.steps import Setup
from zo_fl.wrap.stop import require_validation

PATIENCE = 2  # counts without a better one after which it ends

BLOCKS: dict[str, Block] = {
    "ridge_cg": {
        "num_rounds": Field(200, "iterations, at most", at_least=0),
        "check_every": Field(
            2, "iterations between counts on validation examples", at_least=1, zero="none"
        ),
        "penalty": Field(1e-3, "penalty, for features of variance 1", at_least=0),
        "shrinkage": Field(0.03, "addition to the preconditioner's diagonal", above=0),
        "calibrate": steps.CALIBRATE,
        "encoding": messages.ENCODING,
        "cache": features.CACHE,
        "microbatch": features.MICROBATCH,
    }
}


class Solution(NamedTuple):
    """A solution so far; all in standardized features.

    Attributes:
      mean: ``f32[d]``, of the features.
      scale: ``f32[d]``, one over the deviation; 0 for a constant feature.
      prior: ``f32[C]``, the share of each class.
      num_examples: ``f32[]``.
      weights: ``f32[d, C]``.
      residual: ``f32[d, C]``.
      direction: ``f32[d, C]``, of the next step.
      energy: ``f32[C]``, the residual's product with ``M^-1 residual``.
      of_high: M; before the first sums what gives W.
    """

    mean: Array
    scale: Array
    prior: Array
    num_examples: Array
    weights: Array
    residual: Array
    direction: Array
    energy: Array
    of_high: Preconditioner


class Iterating(NamedTuple):
    """The settings of clients and server, from fields of the config."""

    extractor: Extractor
    encoding: str
    penalty: float
    shrinkage: float
    check_every: int

    @property
    def diagonal(self) -> float:
        """Of M."""
        return self.penalty + self.shrinkage

    @property
    def encoding_of_sizes(self) -> str:
        """Deviations are divisors: small ones need the digits of float16."""
        return "float32" if self.encoding == "float32" else "float16"


def phases(problem: Problem, *, ridge_cg: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Returns the phases of moments, sums and iterations; ``ridge_cg`` is the config block.

    Raises:
      FieldError: clients have no validation examples to count or calibrate on.
    """
    block, rounds, every = ridge_cg, ridge_cg["num_rounds"], ridge_cg["check_every"]
    extractor = features.make_extractor(problem, block["microbatch"])
    how = Iterating(extractor, block["encoding"], block["penalty"], block["shrinkage"], every)
    tier = preconditioner.of_high_tier(problem, extractor, block["encoding"])
    keeping, start = features.keeping(extractor, block["cache"]), partial(_start, tier)
    setup = Setup("ridge_cg", problem, extractor, keeping, rounds, start)
    first = Client(
        partial(_send_first, how),
        partial(_read_first, how),
        read_alone=True,  # means and roots, which add up with counts alone
        one_model=True,
        sent_bytes=partial(_first_bytes, how),
    )
    iterate = Client(
        partial(_send_product, how),
        partial(_read_product, how),
        lambda state: state.strategy_state.direction,
        read_alone=block["encoding"] != "float32",
        one_model=True,
    )
    # Clients who keep features also keep those of the examples that they will be asked about.
    asked = problem.validation if every and block["cache"] else None
    more = 0.0 if asked is None else float(np.asarray(asked.client_sizes).mean())
    passes = features.passes(0 if block["cache"] else 1)
    begin = assign(partial(_begin, how), init=setup.continued)
    step = assign(partial(_step, how), init=setup.continued)
    iterations = setup.phase("iterations", rounds, iterate, step, passes)
    if every and rounds:
        require_validation(problem, "check_every", f"={every}")
        iterations = iterations._replace(stop=_stop(extractor, every))
    return steps.in_order(
        setup,
        preconditioner.phase(setup, tier, _learned),
        setup.phase("sums", setup.once, first, begin, features.passes(more=more + 1)),
        iterations,
        *((steps.temperature(setup),) if block["calibrate"] else ()),
    )


def _start(tier: HighTier) -> Solution:
    """Returns the solution before any sums: ``W = 0``."""
    dim, classes = tier.extractor.dim, tier.extractor.task.num_classes
    shapes = (dim,), (dim,), (classes,), (), *((dim, classes),) * 3, (classes,)
    return Solution(*map(jnp.zeros, shapes), of_high=tier.start())


def _learned(state: ServerState, of_high: Preconditioner) -> Solution:
    return state.strategy_state._replace(of_high=of_high)


def _send_first(how: Iterating, state, batch, own) -> ClientResult:
    """Sends the root of the mean square of each feature, class means and counts."""
    squares = lambda seen: jnp.sum(seen**2, axis=0)  # noqa: E731
    basis = features.around_blank(how.extractor, state)
    sums = features.sums(how.extractor, state, batch, squares, basis)
    sizes = jnp.sqrt(sums.gram / jnp.maximum(sums.class_counts.sum(), 1))
    return features.result(batch, _encode_first(how, sums._replace(gram=sizes)), sums)


def _encode_first(how: Iterating, sums: Moments) -> Message:
    sizes = messages.encode(how.encoding_of_sizes, sums.gram)
    return messages.encode_means(how.encoding, sums)._replace(gram=sizes)


def _read_first(how: Iterating, message: Message, state: ServerState, own: Keys) -> Moments:
    sums = messages.decode_means(how.encoding, how.extractor.dim, message)
    sizes = messages.decode(how.encoding_of_sizes, message.gram, how.extractor.dim)
    return sums._replace(gram=sizes**2 * sums.class_counts.sum())


def _first_bytes(how: Iterating, batch: ClientBatch) -> Array:
    dim, counts = how.extractor.dim, features.class_counts(how.extractor, batch)
    sums = Moments(jnp.zeros(dim), jnp.zeros((dim, len(counts))), counts)
    return messages.num_bytes(partial(_encode_first, how), sums, counts)


def _begin(how: Iterating, sums: Moments, state: ServerState, of_round: Keys):
    """Returns the solution before the first step, from everyone's sums."""
    known: Solution = state.strategy_state
    count = jnp.maximum(sums.class_counts.sum(), 1)
    mean, prior = sums.class_sums.sum(1) / count, sums.class_counts / count
    scale = closed_form.standardizing(mean, sums.gram / count - mean**2)
    cross = (sums.class_sums / count - jnp.outer(mean, prior)) * scale[:, None]
    of_high = preconditioner.complete(known.of_high, scale, cross, prior, how.diagonal)
    direction = of_high.solve(how.diagonal, cross)
    return state.params, known._replace(
        of_high=of_high,
        mean=features.around_blank(how.extractor, state).origin + mean,
        scale=scale,
        prior=prior,
        num_examples=count,
        residual=cross,
        direction=direction,
        energy=jnp.sum(cross * direction, axis=0),
    )


def _send_product(how: Iterating, state, batch, own) -> ClientResult:
    known: Solution = state.strategy_state

    def add(sums, seen, labels):
        real = (labels.sum(-1) > 0)[:, None]
        white = jnp.where(real, (seen - known.mean[None]) * known.scale[None], 0.0)
        ahead = closed_form.product(white, known.direction)
        return sums + closed_form.product(white.T, ahead)

    zeros = jnp.zeros((how.extractor.dim, how.extractor.task.num_classes))
    sums = features.sum_over(how.extractor, state, batch, add, zeros)
    message = messages.encode(how.encoding, sums.T)  # one scale a class
    return features.result(batch, message, sums)


def _read_product(how: Iterating, message: Encoded, state: ServerState, own: Keys) -> Array:
    return messages.decode(how.encoding, message, how.extractor.dim).T


def _step(how: Iterating, sums: Array, state: ServerState, of_round: Keys):
    """Returns the state after one step for each class, along the direction that was sent."""
    known: Solution = state.strategy_state
    ahead = sums / known.num_examples + how.penalty * known.direction
    curvature = jnp.sum(known.direction * ahead, axis=0)
    length = jnp.where(curvature > 0, known.energy / jnp.maximum(curvature, 1e-30), 0.0)
    residual = known.residual - length[None] * ahead
    toward = known.of_high.solve(how.diagonal, residual)
    energy = jnp.sum(residual * toward, axis=0)
    ratio = energy / jnp.maximum(known.energy, 1e-30)
    new = known._replace(
        weights=known.weights + length[None] * known.direction,
        residual=residual,
        direction=toward + ratio[None] * known.direction,
        energy=energy,
    )
    # Without counts the model has the latest head, with them the best.
    return state.params if how.check_every else _with_head(how.extractor, state.params, new), new


def _head(known: Solution) -> Params:
    """Returns the head ``{"kernel": f32[d, C], "bias": f32[C]}`` of the features themselves."""
    kernel = known.weights * known.scale[:, None]
    bias = known.prior - closed_form.product(known.mean[None], kernel)[0]
    return {"kernel": kernel, "bias": bias}


def _with_head(extractor: Extractor, params: Params, known: Solution) -> Params:
    return params | {extractor.task.head: _head(known)}


def _stop(extractor: Extractor, every: int) -> Stop:
    """Returns the rule by which iterations end and the best head is kept."""

    def latest(state: ServerState) -> Params:
        return _with_head(extractor, state.params, state.strategy_state)

    return Stop(
        every,
        PATIENCE,
        asked=lambda state, data: (latest(state), state.model_state),
        sent=lambda state: _head(state.strategy_state),
        keep=lambda state: state._replace(params=latest(state)),
    )
