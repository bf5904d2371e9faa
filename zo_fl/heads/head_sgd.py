"""First-order rounds on the last layer alone, from forward passes: no activation is kept.

    client j:  E epochs of mini-batch SGD on the head, gradient h (p - y)^T,   message: its delta
    server:    ServerOptimizer(head, mean delta)

h is the head's input, p the softmax of its output: the exact gradient of the cross-entropy by the
head, at the memory of inference. The rest of the model stays as it is.

Source: the chain rule; compare "The Cost of Avoiding Backpropagation" (arXiv 2506.21833).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from zo_fl.engine import cohorts, keys, server_optimizers
from zo_fl.engine.fields import Block, Field, take, without
from zo_fl.engine.phase import PARTICIPATION, Participation, Phase, Problem, make_group
from zo_fl.engine.strategy import Aggregation, ClientStrategy
from zo_fl.engine.types import ClientBatch, ClientResult, ServerState
from zo_fl.heads import closed_form, features
from zo_fl.heads.features import CACHE, LOOKING, Looking

BLOCKS: dict[str, Block] = {
    "head_sgd": {
        "num_rounds": Field(40, "rounds", at_least=0),
        **PARTICIPATION,
        "local_epochs": Field(1, "passes over a client's examples a round", at_least=1),
        "batch_size": Field(64, "examples a step; 0 = all of a client's", at_least=0),
        "lr": Field(0.1, "client learning rate", at_least=0, varies=True),
        "server_lr": Field(1.0, "server learning rate", at_least=0, varies=True),
        "server": server_optimizers.BLOCK,
        **CACHE,
        **without(LOOKING, "mirror"),
    }
}


def phases(problem: Problem, *, head_sgd: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Returns the one phase; ``head_sgd`` is its config block.

    Raises:
      ConfigError: a cohort that cannot be drawn.
    """
    task, epochs, lr = problem.task, head_sgd["local_epochs"], head_sgd["lr"]
    looking = Looking(head_sgd["microbatch"], mirror=False)

    def client_update(state: ServerState, batch: ClientBatch, run_key) -> ClientResult:
        round_key = keys.round_key(run_key, state.round_idx)
        key = keys.stream(keys.client_key(round_key, batch.client_id), "batches")
        size = head_sgd["batch_size"] or batch.mask.shape[0]

        def step(carry, where):
            head, total = carry
            rows, mask = where
            examples = jax.tree.map(lambda leaf: leaf[rows], batch.examples)
            part = batch._replace(examples=examples, mask=mask)
            gradient, loss = _gradient(task, looking, state, part, head)
            count = jnp.maximum(mask.sum(), 1)
            return (
                jax.tree.map(lambda w, g: w - lr * g / count, head, gradient),
                total + loss,
            ), None

        order = jax.vmap(lambda key: cohorts.epoch_order(key, batch.mask, size))
        indices, masks = order(jax.random.split(key, epochs))
        indices, masks = (leaf.reshape(-1, leaf.shape[-1]) for leaf in (indices, masks))
        start = state.params[task.head]
        (after, total), _ = jax.lax.scan(step, (start, jnp.float32(0)), (indices, masks))
        delta = jax.tree.map(jnp.subtract, start, after)
        loss = total / jnp.maximum(jnp.sum(batch.mask) * epochs, 1)
        return ClientResult(delta, features.weight(batch, delta), {}, {"loss": loss})

    def finalize(delta, state: ServerState, run_key):
        del run_key
        gradient = optax.tree.zeros_like(state.params) | {task.head: delta}
        return gradient, state.strategy_state

    strategy = ClientStrategy(client_update, one_model=True)
    rounds = head_sgd["num_rounds"]
    keeping = features.keeping(task, looking, on_client=head_sgd["cache"])
    # One pass in all if features are kept: its share of a round.
    a_round = 1 / max(rounds, 1) if keeping.on_client else epochs
    group = make_group(
        problem,
        strategy,
        lambda clients, examples: clients * examples * a_round,
        take(Participation, head_sgd),
    )
    server = server_optimizers.create(lr=head_sgd["server_lr"], **head_sgd["server"])
    aggregation = Aggregation(finalize=finalize)
    return (Phase("head_sgd", rounds, (group,), aggregation, server, keeping=keeping),)


def _gradient(task, looking: Looking, state: ServerState, batch: ClientBatch, head):
    """Returns the sum over a mini-batch of ``h (p - y)^T`` and ``p - y``, and of the losses."""

    def add(sums, seen, labels):
        gradient, loss = sums
        logits = closed_form.full_product(seen, head["kernel"]) + head["bias"][None]
        real = labels.sum(-1, keepdims=True)
        error = jax.nn.softmax(logits) * real - labels
        new = {"kernel": closed_form.full_product(seen.T, error), "bias": error.sum(0)}
        each = -jnp.sum(jax.nn.log_softmax(logits) * labels)
        return jax.tree.map(jnp.add, gradient, new), loss + each

    return features.sum_over(
        task, looking, state, batch, add, (optax.tree.zeros_like(head), jnp.float32(0))
    )
