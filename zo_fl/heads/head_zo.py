"""Scalars for the last layer alone, along whitened directions: one forward pass, however many.

    once:      high tier's moments of the features h -> basis (mu, D) of k whitened principal
               directions, sent to everyone; the head starts from zero (``fresh``)
    client j:  scalar_m = <gradient of its loss by (V, b), z_{j,m}>,  head: V^T D^T (h - mu) + b
    server:    g = sum_j (n_j / sum n) 1/S sum_m scalar_{j,m} z_{j,m},   the head follows from D g

``zo`` with ``params = "head/*"`` takes 2 S passes of the whole model. This method perturbs only the
head: one pass is enough, and derivatives along z are exact, without eps. Two things make few
scalars go further. The loss of whitened features is about equally curved in every direction; that
of raw features is curved mostly along the mean. And with k principal directions only k C + C
coordinates are left, so each scalar says more. Losses that spare absent classes (``engine.losses``)
keep clients with skewed labels from contradicting each other.

With ``cache`` clients keep their features, and all rounds take one pass in all.

Sources: Amari 1998 for the natural gradient (whitening is its part that needs no labels);
Baydin et al. 2022 (arXiv 2202.08587) for derivatives along directions.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from zo_fl.engine import cohorts, keys, losses
from zo_fl.engine.algorithm import Client, ClientResult, Phase, Problem, ServerState
from zo_fl.engine.fields import Block, Field
from zo_fl.engine.keys import Keys
from zo_fl.engine.server import descend
from zo_fl.engine.types import Array, Params, PyTree
from zo_fl.heads import closed_form, features, head_sgd, steps
from zo_fl.heads.closed_form import Basis, Heads, Moments
from zo_fl.heads.features import Extractor
from zo_fl.heads.steps import Setup
from zo_fl.zo import directions, estimators

BLOCKS: dict[str, Block] = {
    "head_zo": {
        "num_rounds": Field(40, "rounds", at_least=0),
        **cohorts.FIELDS,
        "num_directions": Field(3, "scalars S a round", at_least=1, at_most=10**6),
        "sketch": Field(32, "whitened principal directions k", at_least=1, zero="all"),
        "fresh": Field(True, "start from a head of zeros instead of the model's"),
        "loss": losses.FIELD,
        "lr": Field(0.3, "server learning rate, in whitened coordinates", at_least=0, varies=True),
        "cache": features.CACHE,
        "microbatch": features.MICROBATCH,
    }
}
_ADD_DIRECTION = directions.create("rademacher", tau=1.0)


def phases(problem: Problem, *, head_zo: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Returns the basis phase and the scalars phase; ``head_zo`` is the config block.

    The strategy state is the basis, which everyone has.

    Raises:
      FieldError: a cohort that cannot be drawn, or a sketch that is too large.
    """
    block, rounds, count = head_zo, head_zo["num_rounds"], head_zo["num_directions"]
    extractor = features.make_extractor(problem, block["microbatch"], block["sketch"])
    keeping, start = features.keeping(extractor, block["cache"]), partial(_start, extractor)
    setup = Setup("head_zo", problem, extractor, keeping, rounds, start)
    client = Client(
        partial(_update, extractor, block["loss"], count),
        partial(_decode, extractor, count),
        lambda state: (state.params, state.model_state, state.strategy_state),
        replays=True,
        read_alone=True,
        one_model=True,
    )
    gradient = partial(_gradient_of_all, extractor)
    server = descend(optax.sgd(block["lr"]), gradient, init=setup.continued)
    # Where features are kept, one pass in all is spread over the rounds.
    passes = features.passes(1 / max(rounds, 1) if block["cache"] else 1)
    learn = partial(_learn_from_high, extractor, block["fresh"])
    return steps.in_order(
        setup,
        steps.high_tier_moments(setup, "basis", learn),
        setup.phase("scalars", rounds, client, server, passes, block),
    )


def _start(extractor: Extractor) -> Basis:
    return Basis(jnp.zeros(extractor.dim), jnp.zeros((extractor.dim, extractor.size)))


def _learn_from_high(extractor: Extractor, fresh: bool, moments: Moments, state, of_round: Keys):
    params, head = state.params, extractor.task.head
    if fresh:
        params = params | {head: optax.tree.zeros_like(params[head])}
    origin = features.around_blank(extractor, state).origin
    return params, closed_form.principal_basis(moments, extractor.size, origin)


def _zeros(extractor: Extractor) -> Params:
    """Returns a head of zeros on the basis."""
    shape = extractor.size, extractor.task.num_classes
    return {"kernel": jnp.zeros(shape), "bias": jnp.zeros(extractor.task.num_classes)}


def direction_keys(own: Keys, count: int) -> Array:
    """Returns the keys ``key[S]`` of a client's directions."""
    root = keys.stream(own.client, "directions")
    return jax.vmap(jax.random.fold_in, (None, 0))(root, jnp.arange(count))


def _update(extractor: Extractor, loss: str, count: int, state, batch, own) -> ClientResult:
    gradient, mean_loss = _gradient(extractor, loss, state, batch)

    def along(key):
        direction = _ADD_DIRECTION(_zeros(extractor), key, 1.0)
        products = jax.tree.map(lambda a, b: jnp.sum(a * b), direction, gradient)
        return products["kernel"] + products["bias"]

    scalars = jax.lax.map(along, direction_keys(own, count))
    return features.result(batch, scalars, loss=mean_loss)


def _gradient(extractor: Extractor, loss: str, state, batch) -> tuple[Params, Array]:
    """Returns a client's mean gradient by the head on the basis, and its mean loss ``f32[]``."""
    head, adjust = state.params[extractor.task.head], losses.LOSSES[loss]
    counts = features.class_counts(extractor, batch)

    def total(logits, labels):
        logits = logits if adjust is None else adjust(logits, counts)
        return -jnp.sum(jax.nn.log_softmax(logits) * labels)  # rows of padding have no label

    def add(sums, seen, labels):
        logits = closed_form.product(seen, head["kernel"]) + head["bias"][None]
        value, error = jax.value_and_grad(total)(logits, labels)
        white = closed_form.project(state.strategy_state, seen)
        new = {"kernel": closed_form.product(white.T, error), "bias": error.sum(0)}
        return jax.tree.map(jnp.add, sums, (new, value))

    sums = features.sum_over(extractor, state, batch, add, (_zeros(extractor), jnp.float32(0)))
    return optax.tree.scale(1 / jnp.maximum(jnp.sum(batch.mask), 1), sums)


def _decode(
    extractor: Extractor, count: int, scalars: Array, state: ServerState, own: Keys
) -> PyTree:
    coefficients = estimators.finite_mean_coefficients(scalars, 1.0)
    drawn = direction_keys(own, count)
    return estimators.combine(_ADD_DIRECTION, coefficients, drawn, _zeros(extractor))


def _gradient_of_all(extractor: Extractor, mean: Params, state: ServerState, of_round: Keys):
    """Returns the gradient by all parameters, from that by the head on the basis."""
    on_basis = Heads(mean["kernel"][None], mean["bias"][None])
    head = closed_form.unfold(state.strategy_state, on_basis).at(0)
    return head_sgd.whole_gradient(extractor, head, state, of_round)
