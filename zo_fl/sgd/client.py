"""What a client computes in a first-order round: epochs of mini-batch SGD from the server's model.

w_i <- E epochs of mini-batch SGD from w on client i,   message: delta = w - w_i
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zo_fl.engine import cohorts, keys, precision
from zo_fl.engine import losses as client_losses
from zo_fl.engine.errors import FieldError
from zo_fl.engine.fields import Block, Field
from zo_fl.engine.phase import Problem
from zo_fl.engine.strategy import ClientStrategy
from zo_fl.engine.task import Task
from zo_fl.engine.types import (
    Array,
    ClientBatch,
    ClientResult,
    ModelState,
    Params,
    ServerState,
)


class LocalSGD(NamedTuple):
    """Fields of a config block: how a client trains.

    Attributes:
      local_epochs: E.
      batch_size: examples a step; the last batch of an epoch may have fewer.
      lr: step size.
      momentum: fresh every round.
      weight_decay: coupled (L2).
      augment: random crop and flip, drawn anew for every batch.
      precision: one of ``precision.PRECISIONS``.
      microbatch: examples that are back-propagated at once, their gradients added up: memory falls,
        the step stays. 0 = a whole step's.
      loss: one of ``client_losses.LOSSES``.
    """

    local_epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    augment: bool
    precision: str
    microbatch: int
    loss: str


LOCAL_SGD: Block = {
    "local_epochs": Field(3, "passes over a client's examples a round", at_least=1),
    "batch_size": Field(64, "examples a step", at_least=1),
    "lr": Field(0.05, "client learning rate", at_least=0, varies=True),
    "momentum": Field(0.0, "client momentum", at_least=0, below=1),
    "weight_decay": Field(0.0, "client weight decay, coupled (L2)", at_least=0),
    "augment": Field(True, "random crop and flip"),
    "precision": Field("float32", "of products: zo_fl/engine/precision.py", precision.available),
    "microbatch": Field(
        0, "examples back-propagated at once; 0 = a step's; no batch statistics", at_least=0
    ),
    "loss": client_losses.FIELD,
}


class LocalTraining(NamedTuple):
    """How a client trains, its optimizer made.

    Attributes:
      optimizer: the client's, fresh every round.
      epochs: E.
      batch_size: examples a step.
      augment: draw new examples by ``Task.augment`` for every batch.
      microbatch: examples that are back-propagated at once; divides ``batch_size``.
      loss: one of ``client_losses.LOSSES``.
      ragged: clients have unequal sizes: some batches are all padding and must change nothing.
    """

    optimizer: optax.GradientTransformation
    epochs: int
    batch_size: int
    augment: bool
    microbatch: int
    loss: str
    ragged: bool


def local_training(
    problem: Problem, sgd_: LocalSGD, optimizer: optax.GradientTransformation | None = None
) -> LocalTraining:
    """Returns how the clients of a problem train.

    Args:
      problem: says whether they have equal sizes.
      sgd_: the config's fields.
      optimizer: the client's, instead of that of the fields.

    Raises:
      FieldError: microbatches of a model with batch statistics, or that do not fill a batch.
    """
    microbatch = sgd_.microbatch or sgd_.batch_size
    if microbatch < sgd_.batch_size and problem.task.has_statistics:
        raise FieldError(
            "microbatch",
            f"={microbatch} would change batch statistics, which this model has; allowed: 0, or "
            "config.model.norm=group",
        )
    if sgd_.batch_size % microbatch:
        raise FieldError(
            "microbatch", f"={microbatch} does not divide batch_size={sgd_.batch_size}"
        )
    sizes = np.asarray(problem.clients.client_sizes)
    return LocalTraining(
        optimizer or sgd(sgd_.lr, sgd_.momentum, sgd_.weight_decay),
        sgd_.local_epochs,
        sgd_.batch_size,
        sgd_.augment,
        microbatch,
        sgd_.loss,
        ragged=bool(sizes.min() < sizes.max()),
    )


def sgd(
    lr: float | Array, momentum: float = 0.0, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Returns SGD with coupled weight decay (L2), as PyTorch has it."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        optax.sgd(lr, momentum=momentum or None),
    )


def local_sgd(task: Task, training: Callable[[ServerState], LocalTraining]) -> ClientStrategy:
    """Returns the strategy whose message is ``delta = before - after`` of local training by a task.

    Running statistics of BatchNorm travel beside it.

    Args:
      task: the learning problem, at the precision of training.
      training: how, given what the server sent: a rate may follow the round, a penalty the weights.
    """

    def client_update(state: ServerState, batch: ClientBatch, run_key: Array) -> ClientResult:
        after, new_state, loss = train(task, training(state), state, batch, run_key)
        size = jnp.sum(batch.mask).astype(jnp.float32)
        delta = optax.tree.sub(state.params, after)
        return ClientResult(delta, size, new_state, {"loss": loss})

    return ClientStrategy(client_update)


def train(
    task: Task,
    training: LocalTraining,
    start: ServerState,
    batch: ClientBatch,
    run_key: Array,
) -> tuple[Params, ModelState, Array]:
    """Returns ``(params, model_state, mean loss)`` after one client's epochs of mini-batch SGD.

    Args:
      task: the learning problem.
      training: how.
      start: parameters and statistics to start from, and the round.
      batch: all examples of the client.
      run_key: ``key[]``.
    """
    client_key = keys.client_key(keys.round_key(run_key, start.round_idx), batch.client_id)
    losses_of = client_losses.of_client(task, training.loss, batch)

    def step(carry, inputs):
        params, model_state, opt_state = carry
        indices, mask, key = inputs
        examples = jax.tree.map(lambda leaf: leaf[indices], batch.examples)
        if training.augment:
            examples = task.augment(key, examples)

        count = jnp.maximum(jnp.sum(mask), 1)

        def gradient_of(examples, mask):
            def objective(params):
                values, new_state = losses_of(params, model_state, examples, mask, True)
                total = jnp.sum(jnp.where(mask, values, 0.0))
                return total / count, (total, new_state)

            return jax.grad(objective, has_aux=True)(params)

        if training.microbatch < training.batch_size:
            cut = lambda leaf: leaf.reshape(-1, training.microbatch, *leaf.shape[1:])  # noqa: E731
            parts = jax.tree.map(cut, (examples, mask))
            zeros = optax.tree.zeros_like(params), jnp.float32(0)

            def add(sums, part):
                gradient, (total, _) = gradient_of(*part)
                return jax.tree.map(jnp.add, sums, (gradient, total)), None

            (gradient, total), _ = jax.lax.scan(add, zeros, parts)
            new_state = model_state
        else:
            gradient, (total, new_state) = gradient_of(examples, mask)
        updates, new_opt_state = training.optimizer.update(gradient, opt_state, params)
        new = (optax.apply_updates(params, updates), new_state, new_opt_state)
        if training.ragged:
            new = optax.tree.where(jnp.any(mask), new, carry)
        return new, total

    epoch_keys = jax.random.split(keys.stream(client_key, "batches"), training.epochs)
    indices, masks = jax.vmap(cohorts.epoch_order, in_axes=(0, None, None))(
        epoch_keys, batch.mask, training.batch_size
    )
    indices, masks = (leaf.reshape(-1, leaf.shape[-1]) for leaf in (indices, masks))
    step_keys = jax.random.split(keys.stream(client_key, "augment"), indices.shape[0])
    carry = (start.params, start.model_state, training.optimizer.init(start.params))
    (after, new_state, _), totals = jax.lax.scan(step, carry, (indices, masks, step_keys))
    seen = jnp.maximum(jnp.sum(batch.mask) * training.epochs, 1)
    return after, new_state, jnp.sum(totals) / seen
