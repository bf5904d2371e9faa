"""Ridge regression by conjugate gradients: for features too many for a Gram matrix.

    first:  client j sends mean h^2, its class means and counts;  server: mean, deviation, cross
            term R = 1/n sum h y^T, centered, P = R
    then:   server sends P (d x C), client j sends H_j^T H_j P of standardized features H_j,
            server: one step of conjugate gradients for each class

A message is d C numbers, where that of ``ridge`` is d (d + 1) / 2: it pays below d / (2 C)
iterations, and with ``preconditioner = high`` a few will do. The high tier sends the second moments
of its features once, and with W, the covariance within its classes, and B, that between everyone's,
which the first sums give,

    server: one step along M^-1 residual, M = W + B + (penalty + shrinkage) I

so that the first iteration is a linear discriminant, as in ``gaussian_head``, and the others mend
what the high tier's covariance is not everyone's. The server holds a matrix of d x d then.

A few iterations regularize as a penalty does, and more overfit: every few of them the clients count
what the head so far gets right of their validation examples, the best head is kept, and the method
ends where the count has stopped rising. Every round needs everyone; a client that drops out of one
leaves an inexact step.

Sources: DiSCO (Zhang and Xiao 2015, arXiv 1501.00263) for a preconditioner from one party's data;
that class means make its part between classes everyone's is this project's own. The iterations
themselves are ``core.conjugate``.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zo_fl.engine.fields import Block, Field, take
from zo_fl.engine.phase import Check, Participation, Phase, Problem, make_group
from zo_fl.engine.strategy import Aggregation, ClientStrategy
from zo_fl.engine.types import Array, ClientBatch, ClientResult, Params, ServerState
from zo_fl.heads import (
    candidates,
    class_means,
    closed_form,
    conjugate,
    encodings,
    features,
    sketches,
)
from zo_fl.heads.class_means import ClassMeans
from zo_fl.heads.closed_form import Heads, Moments
from zo_fl.heads.conjugate import Solution
from zo_fl.heads.encodings import ENCODINGS, Encoded
from zo_fl.heads.features import CACHE, LOOKING, Looking

ENDS_BY_CHOOSING = True  # more rounds would come too late

PRECONDITIONERS = ("none", "high")

BLOCKS: dict[str, Block] = {
    "ridge_cg": {
        "num_rounds": Field(200, "iterations, at most", at_least=0),
        "check_every": Field(
            2,
            "iterations between counts on validation examples; 0 = none, and all iterations",
            at_least=0,
        ),
        "patience": Field(2, "counts without a better one after which it ends", at_least=1),
        "penalty": Field(1e-3, "of weights, of variance 1", at_least=0),
        "preconditioner": Field(
            "high", "high: from the covariance within the high tier's classes", PRECONDITIONERS
        ),
        "shrinkage": Field(0.03, "added to it, of variance 1", above=0),
        "calibrate": Field(True, "fit a temperature for cross-entropy"),
        "encoding": Field("float32", "of what is sent; below float16 steps err", ENCODINGS),
        **CACHE,
        **LOOKING,
    }
}


class FirstSums(NamedTuple):
    """What a client sends first.

    Attributes:
      sizes: ``[d]``, the root of the mean square of each feature.
      of_classes: means and counts.
    """

    sizes: Encoded
    of_classes: ClassMeans


class ConjugateState(NamedTuple):
    """What the server remembers between rounds.

    Attributes:
      solution: so far; with a preconditioner it begins with the high tier's covariance.
      best: ``i32[]`` validation examples that the head in the parameters gets right.
      waited: ``i32[]`` counts since then.
    """

    solution: Solution
    best: Array
    waited: Array


def phases(problem: Problem, *, ridge_cg: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Returns first sums, iterations and what follows them; ``ridge_cg`` is the config block.

    Raises:
      ConfigError: nothing to choose the number of iterations by.
    """
    task, looking = problem.task, take(Looking, ridge_cg)
    rounds, encoding = ridge_cg["num_rounds"], ridge_cg["encoding"]
    # Deviations divide: those of small features want digits, which halves have.
    of_sizes = "float32" if encoding == "float32" else "float16"
    dim, classes = features.shapes(task)
    sketches.check_pairs(encoding, dim)
    every = ridge_cg["check_every"]
    preconditioned = ridge_cg["preconditioner"] == "high"
    # What clients keep includes the examples that they are asked about later.
    of_kept = problem.validation if every and ridge_cg["cache"] else None
    keeping = features.keeping(task, looking, on_client=ridge_cg["cache"])

    def init(params) -> ConjugateState:
        del params
        nothing = conjugate.nothing(dim, classes, preconditioned)
        return ConjugateState(nothing, jnp.int32(-1), jnp.int32(0))

    def solved(state: ServerState, solution: Solution) -> ConjugateState:
        return state.strategy_state._replace(solution=solution)

    def remember(moments: Moments, state: ServerState, run_key):
        del run_key
        within = closed_form.within_covariance(moments)
        solution = state.strategy_state.solution._replace(factor=within)
        return state.params, solved(state, solution)

    def first_sums(state: ServerState, batch: ClientBatch, run_key) -> ClientResult:
        del run_key

        def add(sums, seen, labels):
            squares, class_sums, counts = sums
            class_sums = class_sums + closed_form.full_product(seen.T, labels)
            return squares + jnp.sum(seen**2, axis=0), class_sums, counts + labels.sum(0)

        zeros = jnp.zeros(dim), jnp.zeros((dim, classes)), jnp.zeros(classes)
        sums = features.sum_over(task, looking, state, batch, add, zeros)
        squares, *of_classes = sums
        sizes = jnp.sqrt(squares / jnp.maximum(of_classes[1].sum(), 1))
        message = FirstSums(
            encodings.encode(of_sizes, sizes), class_means.to_message(encoding, *of_classes)
        )
        return ClientResult(message, features.weight(batch, sums), {}, {})

    def decode_first(message: FirstSums, client_id, state: ServerState, run_key):
        del client_id, state, run_key
        class_sums, counts = class_means.from_message(encoding, message.of_classes)
        squares = encodings.decode(of_sizes, message.sizes) ** 2 * counts.sum()
        return squares, class_sums, counts

    def first_bytes(batch: ClientBatch):
        labels = features.labels(task, batch.examples)
        of_classes = class_means.message_bytes(encoding, dim, labels, batch.mask, classes)
        return of_classes + encodings.num_bytes(of_sizes, dim)

    def begin(sums, state: ServerState, run_key):
        del run_key
        squares, class_sums, counts = sums
        diagonal = ridge_cg["penalty"] + ridge_cg["shrinkage"]
        known: Solution = state.strategy_state.solution
        begun = conjugate.begin(known, squares, class_sums, counts, diagonal)
        return state.params, solved(state, begun)

    def product(state: ServerState, batch: ClientBatch, run_key) -> ClientResult:
        del run_key
        known: Solution = state.strategy_state.solution

        def add(sums, seen, labels):
            real = (labels.sum(-1) > 0)[:, None]
            white = jnp.where(real, (seen - known.mean[None]) * known.scale[None], 0.0)
            ahead = closed_form.full_product(white, known.direction)
            return sums + closed_form.full_product(white.T, ahead)

        sums = features.sum_over(task, looking, state, batch, add, jnp.zeros((dim, classes)))
        # One scale a class.
        return ClientResult(
            encodings.encode(encoding, sums.T), features.weight(batch, sums), {}, {}
        )

    def decode(message, client_id, state: ServerState, run_key):
        del client_id, state, run_key
        return encodings.decode(encoding, message).T

    def step(sums, state: ServerState, run_key):
        del run_key
        known: Solution = state.strategy_state.solution
        ahead = sums / known.num_examples + ridge_cg["penalty"] * known.direction
        new = conjugate.step(known, ahead)
        # Without counts the head is that of the latest iteration, else that of the best.
        params = state.params if every else _with_head(task.head, state.params, new)
        return params, solved(state, new)

    def receives(state: ServerState):
        return state.strategy_state.solution.direction

    def phase(name, num_rounds, strategy, assign, looks: bool) -> Phase:
        passes = features.passes(looking, of_kept) if looks else lambda clients, examples: 0.0
        group = make_group(problem, strategy, passes, Participation())
        aggregation = Aggregation(init=init, reduce="sum", assign=assign)
        description = Phase(name, num_rounds, (group,), aggregation, None, keeping=keeping)
        return description._replace(continues=True)

    start = ClientStrategy(first_sums, decode_first, one_model=True, sent_bytes=first_bytes)
    iterate = ClientStrategy(product, decode, receives, one_model=True)
    end = candidates.phases(
        problem,
        "ridge_cg",
        looking,
        init=init,
        rounds=min(rounds, 1),
        calibrate=ridge_cg["calibrate"],
        keeping=keeping,
    )
    once = min(rounds, 1)
    first = phase("ridge_cg sums", once, start, begin, looks=True)
    iterations = phase("ridge_cg iterations", rounds, iterate, step, looks=not keeping.on_client)
    if every:
        iterations = iterations._replace(check=_check(problem, looking, init, ridge_cg, keeping))
    moments = sketches.phase(problem, "ridge_cg moments", once, looking, init, remember, keeping)
    before = (moments,) if preconditioned else ()
    first = first._replace(continues=preconditioned)
    return candidates.in_order("ridge_cg", (*before, first, iterations, *end))


def _with_head(name: str, params: Params, solution: Solution) -> Params:
    """Returns parameters with the head of the latest iteration."""
    return candidates.set_head(params, name, *conjugate.head(solution))


def _check(problem: Problem, looking: Looking, init, block: Mapping[str, Any], keeping) -> Check:
    """Returns what is asked every few iterations: how many examples the head so far gets right."""
    head = problem.task.head

    def latest(state: ServerState) -> Heads:
        kernel, bias = conjugate.head(state.strategy_state.solution)
        return Heads(kernel[None], bias[None])

    def assign(counts, state: ServerState, run_key):
        del run_key
        known: ConjugateState = state.strategy_state
        count = counts[0].astype(jnp.int32)
        is_better = count > known.best
        params = jax.tree.map(
            lambda new, old: jnp.where(is_better, new, old),
            _with_head(head, state.params, known.solution),
            state.params,
        )
        known = known._replace(
            best=jnp.maximum(count, known.best),
            waited=jnp.where(is_better, 0, known.waited + 1),
        )
        return params, known

    def is_over(known: ConjugateState):
        return known.waited >= block["patience"]

    counting = candidates.counting(problem, "ridge_cg", looking, latest, kept=keeping.on_client)
    aggregation = Aggregation(init=init, reduce="sum", assign=assign)
    phase = Phase("ridge_cg check", 1, (counting,), aggregation, None, on_validation=True)
    return Check(phase._replace(keeping=keeping), block["check_every"], is_over)
