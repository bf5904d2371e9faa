"""First-order rounds on the last layer alone, from forward passes: no activation is kept.

    client j:  E epochs of mini-batch SGD on the head, gradient h (p - y)^T,   message: its delta
    server:    head <- head - mean delta

h is the head's input, p the softmax of its output: the exact gradient of the cross-entropy by the
head, at the memory of inference. The rest of the model stays as it is.

Source: the chain rule; compare "The Cost of Avoiding Backpropagation" (arXiv 2506.21833).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from zo_fl.engine import cohorts, keys, server
from zo_fl.engine.algorithm import Client, ClientResult, Phase, Problem, ServerState
from zo_fl.engine.fields import Block, Field
from zo_fl.engine.keys import Keys
from zo_fl.engine.types import Array, Params
from zo_fl.heads import closed_form, features
from zo_fl.heads.features import Extractor

BLOCKS: dict[str, Block] = {
    "head_sgd": {
        "num_rounds": Field(40, "rounds", at_least=0),
        **cohorts.FIELDS,
        "local_epochs": Field(
            1, "passes over a client's examples a round", at_least=1, at_most=10**6
        ),
        "batch_size": Field(64, "examples a step; all: a client's", at_least=1, zero="all"),
        "lr": Field(0.1, "client learning rate", at_least=0, varies=True),
        "cache": features.CACHE,
        "microbatch": features.MICROBATCH,
    }
}


def phases(problem: Problem, *, head_sgd: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Returns the one phase; ``head_sgd`` is its config block.

    Raises:
      FieldError: a cohort that cannot be drawn.
    """
    block, rounds, epochs = head_sgd, head_sgd["num_rounds"], head_sgd["local_epochs"]
    extractor = features.make_extractor(problem, block["microbatch"])
    update = partial(_update, extractor, epochs, block["batch_size"], block["lr"])
    client = Client(update, one_model=True)
    passes = features.passes(1 / max(rounds, 1) if block["cache"] else epochs)
    group = cohorts.make_group(problem, client, passes, block)
    group = group._replace(keeping=features.keeping(extractor, on_client=block["cache"]))
    descending = server.descend(optax.sgd(1.0), partial(whole_gradient, extractor))
    return (Phase("head_sgd", rounds, (group,), descending),)


def _update(
    extractor: Extractor, epochs: int, batch_size: int, lr: Any, state, batch, own
) -> ClientResult:
    size = batch_size or batch.mask.shape[0]
    epoch_keys = jax.random.split(keys.stream(own.client, "batches"), epochs)
    order = jax.vmap(lambda key: cohorts.epoch_order(key, batch.mask, size))(epoch_keys)

    def step(carry, where):
        head, total = carry
        rows, mask = where
        examples = jax.tree.map(lambda leaf: leaf[rows], batch.examples)
        part = batch._replace(examples=examples, mask=mask)
        gradient, loss = _gradient(extractor, state, part, head)
        count = jnp.maximum(mask.sum(), 1)
        head = jax.tree.map(lambda w, g: w - lr * g / count, head, gradient)
        return (head, total + loss), None

    start = state.params[extractor.task.head]
    steps = tuple(leaf.reshape(-1, leaf.shape[-1]) for leaf in order)
    (after, total), _ = jax.lax.scan(step, (start, jnp.float32(0)), steps)
    loss = total / jnp.maximum(jnp.sum(batch.mask) * epochs, 1)
    return features.result(batch, jax.tree.map(jnp.subtract, start, after), loss=loss)


def _gradient(extractor: Extractor, state, batch, head: Params) -> tuple[Params, Array]:
    """Returns the sums over a mini-batch of ``h (p - y)^T`` and ``p - y``, and of the losses."""

    def add(sums, seen, labels):
        logits = closed_form.product(seen, head["kernel"]) + head["bias"][None]
        real = labels.sum(-1, keepdims=True)
        error = jax.nn.softmax(logits) * real - labels
        gradient = {"kernel": closed_form.product(seen.T, error), "bias": error.sum(0)}
        each = -jnp.sum(jax.nn.log_softmax(logits) * labels)
        return jax.tree.map(jnp.add, sums, (gradient, each))

    zeros = optax.tree.zeros_like(head), jnp.float32(0)
    return features.sum_over(extractor, state, batch, add, zeros)


def whole_gradient(extractor: Extractor, gradient: Params, state: ServerState, of_round: Keys):
    """Returns the gradient by all parameters, 0 outside of the head, and the strategy state."""
    zeros = optax.tree.zeros_like(state.params)
    return zeros | {extractor.task.head: gradient}, state.strategy_state
