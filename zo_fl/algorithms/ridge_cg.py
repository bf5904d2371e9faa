"""Ridge regression by conjugate gradients: for features too many for a Gram matrix.

    first:  client j sends sum h^2, sum h y^T, n_j;   server: mean, deviation, cross term R, P = R
    then:   server sends P (d x C), client j sends H_j^T H_j P of standardized features H_j,
            server: one step of conjugate gradients for each class

A message is d C numbers, where that of ``ridge`` is d (d + 1) / 2: it pays below d / (2 C)
iterations. A few iterations regularize as a penalty
does: heads of several numbers of iterations are kept, and the clients' validation examples choose.
Every round needs everyone; a client that drops out of one leaves an inexact step.

Source: Hestenes and Stiefel 1952; the sums are those of ``ridge``.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from zo_fl.clients import candidates, features
from zo_fl.clients.features import CACHE, LOOKING, Looking
from zo_fl.core import closed_form, encodings
from zo_fl.core.closed_form import Heads
from zo_fl.core.encodings import ENCODINGS
from zo_fl.core.fields import Block, Field, take
from zo_fl.core.phase import Participation, Phase, Problem, make_group
from zo_fl.core.strategy import Aggregation, ClientStrategy
from zo_fl.core.types import Array, ClientBatch, ClientResult, ServerState

_SNAPSHOTS = 8  # heads that are kept, at most

ENDS_BY_CHOOSING = True  # more rounds would come too late

BLOCKS: dict[str, Block] = {
    "ridge_cg": {
        "num_rounds": Field(40, "iterations", at_least=0),
        "penalty": Field(1e-3, "of weights, of variance 1", at_least=0),
        "calibrate": Field(True, "fit a temperature for cross-entropy"),
        "encoding": Field("float32", "of what is sent", ENCODINGS),
        **CACHE,
        **LOOKING,
    }
}


class ConjugateState(NamedTuple):
    """What the server remembers between rounds; all in standardized features.

    Attributes:
      mean: ``f32[d]``.
      scale: ``f32[d]``, one over the deviation; 0 of a constant feature.
      prior: ``f32[C]``.
      num_examples: ``f32[]``.
      weights: ``f32[d, C]``, the solution so far.
      residual: ``f32[d, C]``.
      direction: ``f32[d, C]``.
      done: ``i32[]`` iterations.
      heads: those of several numbers of iterations.
    """

    mean: Array
    scale: Array
    prior: Array
    num_examples: Array
    weights: Array
    residual: Array
    direction: Array
    done: Array
    heads: Heads


def phases(problem: Problem, *, ridge_cg: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Returns first sums, iterations and what follows them; ``ridge_cg`` is the config block.

    Raises:
      ConfigError: nothing to choose the number of iterations by.
    """
    task, looking = problem.task, take(Looking, ridge_cg)
    rounds, encoding = ridge_cg["num_rounds"], ridge_cg["encoding"]
    dim, classes = features.shapes(task)
    kept = max(1, min(_SNAPSHOTS, rounds))
    keeping = features.keeping(task, looking, on_client=ridge_cg["cache"])

    def init(params) -> ConjugateState:
        del params
        zeros = jnp.zeros((dim, classes))
        heads = Heads(jnp.zeros((kept, dim, classes)), jnp.zeros((kept, classes)))
        return ConjugateState(
            jnp.zeros(dim),
            jnp.zeros(dim),
            jnp.zeros(classes),
            jnp.zeros(()),
            zeros,
            zeros,
            zeros,
            jnp.int32(0),
            heads,
        )

    def first_sums(state: ServerState, batch: ClientBatch, run_key) -> ClientResult:
        del run_key

        def add(sums, seen, labels):
            squares, class_sums, counts = sums
            class_sums = class_sums + closed_form.full_product(seen.T, labels)
            return squares + jnp.sum(seen**2, axis=0), class_sums, counts + labels.sum(0)

        zeros = jnp.zeros(dim), jnp.zeros((dim, classes)), jnp.zeros(classes)
        sums = features.sum_over(task, looking, state, batch, add, zeros)
        return ClientResult(sums, features.weight(batch, sums), {}, {})

    def begin(sums, state: ServerState, run_key):
        del run_key
        squares, class_sums, counts = sums
        count = jnp.maximum(counts.sum(), 1)
        mean, prior = class_sums.sum(1) / count, counts / count
        scale = closed_form.standardizing(mean, squares / count - mean**2)
        cross = (class_sums / count - jnp.outer(mean, prior)) * scale[:, None]
        found = init(None)._replace(
            mean=mean, scale=scale, prior=prior, num_examples=count, residual=cross, direction=cross
        )
        return state.params, found

    def product(state: ServerState, batch: ClientBatch, run_key) -> ClientResult:
        del run_key
        known: ConjugateState = state.strategy_state

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
        known: ConjugateState = state.strategy_state
        ahead = sums / known.num_examples + ridge_cg["penalty"] * known.direction
        new = _iterate(known, ahead)
        kernel = new.weights * new.scale[:, None]
        bias = new.prior - closed_form.full_product(new.mean[None], kernel)[0]
        place = (new.done * kept - 1) // rounds
        heads = Heads(
            known.heads.kernel.at[place].set(kernel), known.heads.bias.at[place].set(bias)
        )
        params = candidates.set_head(state.params, task.head, kernel, bias)
        return params, new._replace(heads=heads)

    def receives(state: ServerState):
        return state.strategy_state.direction

    def phase(name, num_rounds, strategy, assign, is_first=False) -> Phase:
        looks = is_first or not keeping.on_client
        passes = features.passes(looking) if looks else lambda clients, examples: 0.0
        group = make_group(problem, strategy, passes, Participation())
        aggregation = Aggregation(init=init, reduce="sum", assign=assign)
        description = Phase(name, num_rounds, (group,), aggregation, None, keeping=keeping)
        return description._replace(continues=not is_first)

    start = ClientStrategy(first_sums, one_model=True)
    iterate = ClientStrategy(product, decode, receives, one_model=True)
    end = candidates.phases(
        problem,
        "ridge_cg",
        looking,
        lambda state: state.heads,
        init,
        rounds=min(rounds, 1),
        choose=kept > 1,
        calibrate=ridge_cg["calibrate"],
        keeping=keeping,
    )
    first = phase("ridge_cg sums", min(rounds, 1), start, begin, is_first=True)
    iterations = phase("ridge_cg iterations", rounds, iterate, step)
    return candidates.in_order("ridge_cg", (first, iterations, *end))


def _iterate(known: ConjugateState, ahead: Array) -> ConjugateState:
    """Returns the state after one step for each class, given ``A direction``."""
    before = jnp.sum(known.residual**2, axis=0)
    curvature = jnp.sum(known.direction * ahead, axis=0)
    length = jnp.where(curvature > 0, before / jnp.maximum(curvature, 1e-30), 0.0)
    residual = known.residual - length[None] * ahead
    ratio = jnp.sum(residual**2, axis=0) / jnp.maximum(before, 1e-30)
    return known._replace(
        weights=known.weights + length[None] * known.direction,
        residual=residual,
        direction=residual + ratio[None] * known.direction,
        done=known.done + 1,
    )
