"""Scalars for the last layer alone, along whitened directions: one forward pass, however many.

    once:      high tier's moments of the features h -> basis (mu, D) of k whitened principal
               directions, sent to everyone; the head starts from zero (``fresh``)
    client j:  scalar_m = <gradient of its loss by (V, b), z_{j,m}>,  head: V^T D^T (h - mu) + b
    server:    g = sum_j (n_j / sum n) 1/S sum_m scalar_{j,m} z_{j,m},   the head follows from D g

What ``zo`` with ``params = "head/*"`` does by 2 S passes of the whole model takes one here, as only
the head is perturbed, and derivatives along z are exact, without eps. Two things make few scalars
go further. Whitened features make the loss about equally curved in every direction, where it is
curved along the mean most and next to nothing along others; and k principal directions leave
k C + C coordinates, of which as many scalars say more. The losses that spare absent classes
(``clients.client_losses``) keep what clients of skewed labels say from contradicting each other.

With ``cache`` clients keep their features, and all rounds take one pass in all.

Sources: Amari 1998 for the natural gradient, of which whitening is the part that needs no labels;
Baydin et al. 2022 (arXiv 2202.08587) for derivatives along directions.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zo_fl.engine import losses as client_losses
from zo_fl.engine import server_optimizers
from zo_fl.engine.fields import Block, Field, take, without
from zo_fl.engine.phase import PARTICIPATION, Participation, Phase, Problem, make_group
from zo_fl.engine.strategy import Aggregation, ClientStrategy
from zo_fl.engine.types import Array, ClientBatch, ClientResult, Params, ServerState
from zo_fl.heads import closed_form, features, sketches
from zo_fl.heads.closed_form import Basis, Heads, Moments
from zo_fl.heads.features import CACHE, LOOKING, Looking
from zo_fl.heads.sketches import Sketch
from zo_fl.zo import directions, estimators
from zo_fl.zo.rebuilding import directions_root

BLOCKS: dict[str, Block] = {
    "head_zo": {
        "num_rounds": Field(40, "rounds", at_least=0),
        **PARTICIPATION,
        "num_directions": Field(3, "S, scalars a round", at_least=1, at_most=10**6),
        "sketch": Field(32, "k, whitened principal directions; 0 = all that there are", at_least=0),
        "fresh": Field(True, "begin with a head of zeros instead of the model's"),
        "loss": client_losses.FIELD._replace(default="wsm"),
        "lr": Field(0.3, "in whitened coordinates", at_least=0, varies=True),
        "server": server_optimizers.BLOCK,
        **CACHE,
        **without(LOOKING, "mirror"),
    }
}


class Whitened(NamedTuple):
    """What a phase remembers between rounds: the basis that everyone has."""

    basis: Basis


def phases(problem: Problem, *, head_zo: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Returns the round of the basis and those of scalars; ``head_zo`` is the config block.

    Raises:
      ConfigError: a cohort that cannot be drawn, or a sketch that is too large.
    """
    task, num_directions, rounds = problem.task, head_zo["num_directions"], head_zo["num_rounds"]
    looking = Looking(head_zo["microbatch"], mirror=False)
    dim, classes = features.shapes(task)
    sketch = Sketch(head_zo["sketch"] or dim, "principal")
    sketches.check(sketch, dim)
    add_direction = directions.create("rademacher", tau=1.0)
    zeros = {"kernel": jnp.zeros((sketch.sketch, classes)), "bias": jnp.zeros(classes)}

    def init(params) -> Whitened:
        del params
        return Whitened(Basis(jnp.zeros(dim), jnp.zeros((dim, sketch.sketch))))

    def learn_from_high(moments: Moments, state: ServerState, run_key):
        del run_key
        fresh = optax.tree.zeros_like(state.params[task.head])
        params = state.params | {task.head: fresh} if head_zo["fresh"] else state.params
        return params, Whitened(sketches.basis_of(sketch, moments))

    def keys_of(state: ServerState, run_key: Array, client_id: Array) -> Array:
        root = directions_root(state, run_key, client_id)
        return jax.vmap(jax.random.fold_in, (None, 0))(root, jnp.arange(num_directions))

    def client_update(state: ServerState, batch: ClientBatch, run_key) -> ClientResult:
        gradient, loss = _gradient(problem, looking, head_zo["loss"], state, batch, zeros)

        def along(key):
            products = jax.tree.map(
                lambda a, b: jnp.sum(a * b), add_direction(zeros, key, 1.0), gradient
            )
            return products["kernel"] + products["bias"]

        scalars = jax.lax.map(along, keys_of(state, run_key, batch.client_id))
        return ClientResult(scalars, features.weight(batch, scalars), {}, {"loss": loss})

    def decode(scalars, client_id, state: ServerState, run_key):
        coefficients = estimators.finite_mean_coefficients(scalars, 1.0)
        return estimators.combine(
            add_direction, coefficients, keys_of(state, run_key, client_id), zeros
        )

    def finalize(mean_update, state: ServerState, run_key):
        del run_key
        gradient = optax.tree.zeros_like(state.params)
        head = _of_features(state.strategy_state.basis, mean_update)
        return gradient | {task.head: head}, state.strategy_state

    def receives(state: ServerState):
        return state.params, state.model_state, state.strategy_state

    keeping = features.keeping(task, looking, on_client=head_zo["cache"])
    # One pass in all if features are kept: its share of a round.
    a_round = 1 / max(rounds, 1) if keeping.on_client else 1
    group = make_group(
        problem,
        ClientStrategy(client_update, decode, receives, replays=True, one_model=True),
        lambda clients, examples: clients * examples * a_round,
        take(Participation, head_zo),
    )
    optimizer = server_optimizers.create(lr=head_zo["lr"], **head_zo["server"])
    start = sketches.phase(
        problem, "head_zo basis", min(rounds, 1), looking, init, learn_from_high, keeping
    )
    aggregation = Aggregation(init=init, finalize=finalize)
    main = Phase("head_zo", rounds, (group,), aggregation, optimizer, keeping=keeping)
    return start._replace(prepares=True), main._replace(continues=True)


def _gradient(
    problem: Problem, looking: Looking, loss: str, state: ServerState, batch: ClientBatch, zeros
) -> tuple[Params, Array]:
    """Returns a client's mean gradient by the head on the basis, and its mean loss ``f32[]``."""
    task, basis = problem.task, state.strategy_state.basis
    head, adjust = state.params[task.head], client_losses.LOSSES[loss]
    held = jax.nn.one_hot(features.labels(task, batch.examples), task.num_classes)
    counts = jnp.sum(held * batch.mask[:, None], axis=0)

    def add(sums, seen, labels):
        def total(logits):
            logits = logits if adjust is None else adjust(logits, counts)
            return -jnp.sum(jax.nn.log_softmax(logits) * labels)  # rows of padding have no label

        logits = closed_form.full_product(seen, head["kernel"]) + head["bias"][None]
        value, error = jax.value_and_grad(total)(logits)
        white = closed_form.seen_on(basis, seen)
        new = {"kernel": closed_form.full_product(white.T, error), "bias": error.sum(0)}
        return jax.tree.map(jnp.add, sums, (new, value))

    sums = features.sum_over(task, looking, state, batch, add, (zeros, jnp.float32(0)))
    return optax.tree.scale(1 / jnp.maximum(jnp.sum(batch.mask), 1), sums)


def _of_features(basis: Basis, head: Params) -> Params:
    """Returns a head of the features themselves, from one of what they are on a basis."""
    found = closed_form.unfold(basis, Heads(head["kernel"][None], head["bias"][None]))
    return {"kernel": found.kernel[0], "bias": found.bias[0]}
