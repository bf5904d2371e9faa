"""A first-order client: epochs of mini-batch SGD from the server's model.

w_i <- E epochs of mini-batch SGD from w on client i,   message: delta = w - w_i
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zo_fl.engine import cohorts, keys, precision
from zo_fl.engine.algorithm import Client, ClientBatch, ClientResult, Problem, ServerState
from zo_fl.engine.fields import Block, Field, FieldError
from zo_fl.engine.keys import Keys
from zo_fl.engine.types import Array, ModelState, Params, Task

FIELDS: Block = {
    "local_epochs": Field(3, "passes over a client's examples a round", at_least=1, at_most=10**6),
    "batch_size": Field(64, "examples a step", at_least=1),
    "lr": Field(0.05, "client learning rate", at_least=0, varies=True),
    "momentum": Field(0.0, "client momentum, fresh every round", at_least=0, below=1),
    "weight_decay": Field(0.0, "client weight decay, coupled (L2)", at_least=0),
    "augment": Field(True, "random crop and flip, drawn anew for every batch"),
    "precision": Field("float32", "precision of products", precision.available),
    "microbatch": Field(
        0,
        "examples back-propagated at once; all: a step's; no batch statistics",
        at_least=1,
        zero="all",
    ),
}


class LocalTraining(NamedTuple):
    """A client's training.

    Attributes:
      optimizer: the client's, fresh every round.
      epochs: E.
      batch_size: examples a step.
      augment: draw new examples by ``Task.augment`` for every batch.
      microbatch: examples that are back-propagated at once; divides ``batch_size``.
      losses: ``(task, batch) -> losses`` that a client with these examples trains on, called as
        ``Task.losses``; None for the task's own.
      ragged: clients have unequal sizes: some batches are all padding and must change nothing.
    """

    optimizer: optax.GradientTransformation
    epochs: int
    batch_size: int
    augment: bool
    microbatch: int
    losses: Callable | None
    ragged: bool


def local_training(
    problem: Problem,
    block: Mapping[str, Any],
    optimizer: optax.GradientTransformation | None = None,
    losses: Callable | None = None,
) -> LocalTraining:
    """Returns the training of a problem's clients; ``block`` has ``FIELDS``.

    An optimizer takes the place of that of the fields; for ``losses`` see ``LocalTraining``.

    Raises:
      FieldError: microbatches of a model with batch statistics, or that do not fill a batch.
    """
    batch_size = block["batch_size"]
    microbatch = block["microbatch"] or batch_size
    if microbatch < batch_size and problem.task.has_statistics:
        raise FieldError(
            "microbatch",
            f"={microbatch} would change batch statistics, which this model has; allowed: all, or "
            "config.model.norm=group",
        )
    if batch_size % microbatch:
        raise FieldError("microbatch", f"={microbatch} does not divide batch_size={batch_size}")
    return LocalTraining(
        optimizer=optimizer or sgd(block["lr"], block["momentum"], block["weight_decay"]),
        epochs=block["local_epochs"],
        batch_size=batch_size,
        augment=block["augment"],
        microbatch=microbatch,
        losses=losses,
        ragged=cohorts.is_ragged(problem),
    )


def forward_passes(block: Mapping[str, Any]) -> Callable[[float, float], float]:
    """Returns ``(clients, examples of one) -> forward passes a round``; ``block`` as above."""
    return lambda clients, examples: clients * examples * block["local_epochs"]


def sgd(
    lr: float | Array, momentum: float = 0.0, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Returns SGD with coupled weight decay (L2), as PyTorch has it."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        optax.sgd(lr, momentum=momentum or None),
    )


def local_sgd(task: Task, training: Callable[[ServerState], LocalTraining]) -> Client:
    """Returns the client whose message is ``delta = before - after`` of local training.

    Running statistics of BatchNorm travel beside it.

    Args:
      task: the learning problem, at the precision of training.
      training: how, given what the server sent: a rate may follow the round, a penalty the weights.
    """

    def update(state: ServerState, batch: ClientBatch, own: Keys) -> ClientResult:
        after, new_state, loss = train(task, training(state), state, batch, own)
        return ClientResult(
            message=optax.tree.sub(state.params, after),
            weight=jnp.sum(batch.mask).astype(jnp.float32),
            model_state=new_state,
            metrics={"loss": loss},
        )

    return Client(update)


def train(
    task: Task, training: LocalTraining, start: ServerState, batch: ClientBatch, own: Keys
) -> tuple[Params, ModelState, Array]:
    """Returns ``(params, model_state, mean loss)`` after one client's epochs of mini-batch SGD.

    ``batch`` has all of its examples; it starts from the parameters and statistics of ``start``.
    """
    losses_of = training.losses(task, batch) if training.losses else task.losses

    def step(carry, inputs):
        params, model_state, opt_state = carry
        indices, mask, key = inputs
        examples = jax.tree.map(lambda leaf: leaf[indices], batch.examples)
        if training.augment:
            examples = task.augment(key, examples)
        count, of_module = jnp.maximum(jnp.sum(mask), 1), keys.stream(key, "module")

        def objective(params, examples, mask, key):
            values, new_state = losses_of(params, model_state, examples, mask, True, key)
            total = jnp.sum(jnp.where(mask, values, 0.0))
            return total / count, (total, new_state)

        gradient_of = jax.grad(objective, has_aux=True)
        if training.microbatch == training.batch_size:
            gradient, (total, new_state) = gradient_of(params, examples, mask, of_module)
        else:
            parts = cohorts.batched((examples, mask), min(training.microbatch, len(mask)))
            part_keys = jax.random.split(of_module, len(parts[1]))
            gradient, total = _summed(gradient_of, params, (*parts, part_keys))
            new_state = model_state
        updates, new_opt_state = training.optimizer.update(gradient, opt_state, params)
        new = (optax.apply_updates(params, updates), new_state, new_opt_state)
        return new, total

    def step_if_any(carry, inputs):
        _, mask, _ = inputs
        return cohorts.if_any(mask, lambda: step(carry, inputs), lambda: (carry, jnp.float32(0)))

    epoch_keys = jax.random.split(keys.stream(own.client, "batches"), training.epochs)
    indices, masks = jax.vmap(cohorts.epoch_order, in_axes=(0, None, None))(
        epoch_keys, batch.mask, training.batch_size
    )
    indices, masks = (leaf.reshape(-1, leaf.shape[-1]) for leaf in (indices, masks))
    step_keys = jax.random.split(keys.stream(own.client, "augment"), indices.shape[0])
    carry = (start.params, start.model_state, training.optimizer.init(start.params))
    (after, new_state, _), totals = jax.lax.scan(
        step_if_any if training.ragged else step, carry, (indices, masks, step_keys)
    )
    seen = jnp.maximum(jnp.sum(batch.mask) * training.epochs, 1)
    return after, new_state, jnp.sum(totals) / seen


def _summed(gradient_of: Callable, params: Params, parts: Any) -> tuple[Params, Array]:
    """Returns the sums over microbatches of gradients and of losses."""

    def add(sums, part):
        gradient, (total, _) = gradient_of(params, *part)
        return jax.tree.map(jnp.add, sums, (gradient, total)), None

    return jax.lax.scan(add, (optax.tree.zeros_like(params), jnp.float32(0)), parts)[0]
