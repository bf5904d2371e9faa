"""What a client computes in a first-order round: epochs of mini-batch SGD from the server's model.

w_i <- E epochs of mini-batch SGD from w on client i,   message: delta = w - w_i
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from zo_fl.core import augment as augmentation
from zo_fl.core import cohorts, keys
from zo_fl.core.task import Task
from zo_fl.core.types import (
    Array,
    ClientBatch,
    ClientResult,
    ClientStrategy,
    ModelState,
    Params,
    ServerState,
)


class LocalTraining(NamedTuple):
    """How a client trains.

    Attributes:
      optimizer: the client's, fresh every round.
      epochs: E.
      batch_size: examples a step; the last batch of an epoch may have fewer.
      augment: random crop and flip, drawn anew for every batch.
      ragged: clients have unequal sizes: some batches are all padding and must change nothing.
    """

    optimizer: optax.GradientTransformation
    epochs: int
    batch_size: int
    augment: bool
    ragged: bool


# (params, model_state, images, labels, mask) -> (f32[n] losses, model_state)
Losses = Callable[..., tuple[Array, ModelState]]


def sgd(
    lr: float | Array, momentum: float = 0.0, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Returns SGD with coupled weight decay (L2), as PyTorch has it."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        optax.sgd(lr, momentum=momentum or None),
    )


def local_sgd(task: Task, training: LocalTraining) -> ClientStrategy:
    """Returns the strategy whose message is ``delta = before - after`` of local training by a task.

    Running statistics of BatchNorm travel beside it.
    """

    def losses(params, model_state, images, labels, mask):
        return task.losses(params, model_state, images, labels, mask, True)

    def client_update(state: ServerState, batch: ClientBatch, run_key):
        client_key = keys.client_key(keys.round_key(run_key, state.round_idx), batch.client_id)
        after, new_state, loss = train(
            training, losses, state.params, state.model_state, batch, client_key
        )
        size = jnp.sum(batch.mask).astype(jnp.float32)
        delta = optax.tree.sub(state.params, after)
        return ClientResult(delta, size, new_state, {"loss": loss})

    return ClientStrategy(client_update)


def train(
    training: LocalTraining,
    losses: Losses,
    params: Params,
    model_state: ModelState,
    batch: ClientBatch,
    client_key: Array,
) -> tuple[Params, ModelState, Array]:
    """Returns ``(params, model_state, mean loss)`` after one client's epochs of mini-batch SGD.

    Args:
      training: how.
      losses: of a mini-batch, per example.
      params: to start from.
      model_state: to start from.
      batch: all examples of the client.
      client_key: ``key[]`` of the client in this round.
    """

    def step(carry, inputs):
        params, model_state, opt_state = carry
        indices, mask, key = inputs
        images, labels = batch.images[indices], batch.labels[indices]
        if training.augment:
            images = augmentation.crop_and_flip(key, images)

        def objective(params):
            values, new_state = losses(params, model_state, images, labels, mask)
            total = jnp.sum(jnp.where(mask, values, 0.0))
            return total / jnp.maximum(jnp.sum(mask), 1), (total, new_state)

        gradient, (total, new_state) = jax.grad(objective, has_aux=True)(params)
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
    start = (params, model_state, training.optimizer.init(params))
    (after, new_state, _), totals = jax.lax.scan(step, start, (indices, masks, step_keys))
    seen = jnp.maximum(jnp.sum(batch.mask) * training.epochs, 1)
    return after, new_state, jnp.sum(totals) / seen
