"""FedAvg and its FedOpt relatives: local SGD epochs, then a server optimizer on the mean delta.

    w_i <- E epochs of mini-batch SGD from w on client i
    delta = sum_i (n_i / sum n) (w - w_i),   w <- ServerOptimizer(w, delta)

Phase one of ZOWarmUp (the warm-up) is this with ``tiers = "high"``; alone it is the paper's
"High Res Only". Running statistics of BatchNorm travel with the delta and are averaged with the
same weights, unscaled by the server's learning rate, as in the author's public code.

Source: McMahan et al. 2017; Reddi et al. 2021; ZOWarmUp, Algorithm 1, phase 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zo_fl import keys, server_optimizers
from zo_fl.data import augment as augmentation
from zo_fl.data import batches
from zo_fl.phase import Phase, Problem, make_group, make_phase
from zo_fl.task import Task
from zo_fl.types import (
    Aggregation,
    Array,
    ClientBatch,
    ClientResult,
    ClientStrategy,
    Group,
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


# Running statistics of BatchNorm: the mean of the clients', unscaled by the server's step size.
AGGREGATION = Aggregation(finalize_state=lambda model_state, mean_state: mean_state)

# (params, model_state, images, labels, mask) -> (f32[n] losses, model_state)
Losses = Callable[..., tuple[Array, ModelState]]


def phases(problem: Problem, *, warmup: dict) -> tuple[Phase, ...]:
    """Returns the one phase of FedAvg; ``warmup`` is the config block of ``phase``."""
    return (phase(problem, **warmup),)


def phases_for_all(problem: Problem, *, warmup: dict, zo: dict) -> tuple[Phase, ...]:
    """Returns FedAvg by all clients, for as many rounds as ``zo`` has: a control.

    As second phase it is the upper bound of any method in which low-resource clients cannot
    back-propagate; the other fields are the warm-up's.
    """
    changes = {"tiers": "all", "cohort_size": zo["cohort_size"], "num_rounds": zo["num_rounds"]}
    return (phase(problem, name="fedavg_all", **(warmup | changes)),)


def phase(
    problem: Problem,
    *,
    name: str = "warmup",
    num_rounds: int,
    server_lr: float,
    server: dict,
    **clients: Any,
) -> Phase:
    """Returns a phase of FedAvg; the arguments are the fields of ``config.warmup``.

    Args:
      problem: task and clients.
      name: the phase's.
      num_rounds: rounds.
      server_lr: step size along the mean delta.
      server: server optimizer, see ``server_optimizers.create``.
      **clients: the other fields of the block, see ``first_order_clients``.

    Raises:
      ConfigError: a number out of range or an unknown name.
    """
    optimizer = server_optimizers.create(lr=server_lr, **server)
    group = first_order_clients(problem, **clients)
    return make_phase(problem, name, num_rounds, (group,), optimizer, AGGREGATION)


def first_order_clients(
    problem: Problem,
    *,
    cohort_size: int,
    tiers: str,
    participation: str,
    local_epochs: int,
    batch_size: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    augment: bool,
    precision: str,
) -> Group:
    """Returns the clients of a FedAvg round; the arguments are fields of ``config.warmup``."""
    training = LocalTraining(
        sgd(lr, momentum, weight_decay),
        local_epochs,
        batch_size,
        augment,
        has_ragged_clients(problem),
    )
    return make_group(
        problem,
        local_sgd(problem.task.with_precision(precision, "warmup.precision"), training),
        lambda clients, examples: clients * examples * local_epochs,
        block="warmup",
        tiers=tiers,
        cohort_size=cohort_size,
        participation=participation,
    )


def sgd(
    lr: float | Array, momentum: float = 0.0, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Returns SGD with coupled weight decay (L2), as PyTorch has it."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        optax.sgd(lr, momentum=momentum or None),
    )


def has_ragged_clients(problem: Problem) -> bool:
    """Returns whether clients have unequal numbers of examples."""
    sizes = np.asarray(problem.clients.client_sizes)
    return bool(sizes.min() < sizes.max())


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
    indices, masks = jax.vmap(batches.epoch_order, in_axes=(0, None, None))(
        epoch_keys, batch.mask, training.batch_size
    )
    indices, masks = (leaf.reshape(-1, leaf.shape[-1]) for leaf in (indices, masks))
    step_keys = jax.random.split(keys.stream(client_key, "augment"), indices.shape[0])
    start = (params, model_state, training.optimizer.init(params))
    (after, new_state, _), totals = jax.lax.scan(step, start, (indices, masks, step_keys))
    seen = jnp.maximum(jnp.sum(batch.mask) * training.epochs, 1)
    return after, new_state, jnp.sum(totals) / seen
