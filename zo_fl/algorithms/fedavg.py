"""FedAvg and its FedOpt relatives: local SGD epochs, then a server optimizer on the mean delta.

    w_i <- E epochs of mini-batch SGD from w on client i
    delta = sum_i (n_i / sum n) (w - w_i),   w <- ServerOptimizer(w, delta)

Phase one of ZOWarmUp (the warm-up) is this with ``tiers = "high"``; alone it is the paper's
"High Res Only". Running statistics of BatchNorm travel with the delta and are averaged with the
same weights, unscaled by the server's learning rate, as in the author's public code.

Source: McMahan et al. 2017; Reddi et al. 2021; ZOWarmUp, Algorithm 1, phase 1.
"""

import jax
import jax.numpy as jnp
import optax

from zo_fl import keys, server_optimizers
from zo_fl.data import augment as augmentation
from zo_fl.data import batches
from zo_fl.phase import Phase, Problem, make_cohorts
from zo_fl.round import make_algorithm
from zo_fl.types import ClientBatch, ClientResult, ClientStrategy


def phases(problem: Problem, *, warmup: dict) -> tuple[Phase, ...]:
    """Returns the one phase of FedAvg; ``warmup`` is the config block of ``phase``."""
    return (phase(problem, **warmup),)


def phase(
    problem: Problem,
    *,
    num_rounds: int,
    cohort_size: int,
    tiers: str,
    participation: str,
    local_epochs: int,
    batch_size: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    server_lr: float,
    server: dict,
    augment: bool,
    precision: str,
) -> Phase:
    """Returns a phase of FedAvg; the arguments are the fields of ``config.warmup``.

    Raises:
      ConfigError: see ``make_cohorts`` and ``server_optimizers.create``.
    """
    sample_cohort, size, examples = make_cohorts(
        problem, "warmup", tiers, cohort_size, participation
    )
    local_optimizer = optax.chain(
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        optax.sgd(lr, momentum=momentum or None),
    )
    strategy = local_sgd(
        problem, local_optimizer, local_epochs, batch_size, augment=augment, precision=precision
    )
    server_optimizer = server_optimizers.create(lr=server_lr, **server)
    algorithm = make_algorithm(strategy, server_optimizer, sample_cohort, problem.engine)
    return Phase("warmup", num_rounds, algorithm, strategy, size, examples, local_epochs)


def local_sgd(
    problem: Problem,
    optimizer: optax.GradientTransformation,
    local_epochs: int,
    batch_size: int,
    *,
    augment: bool,
    precision: str,
) -> ClientStrategy:
    """Returns the strategy whose message is ``delta = before - after`` of local training.

    Args:
      problem: the task and the clients' sizes.
      optimizer: the client's, fresh every round.
      local_epochs: E.
      batch_size: examples a step; the last batch of an epoch may have fewer.
      augment: random crop and flip, drawn anew for every batch.
      precision: matrix product precision of forward and backward passes (``highest`` = float32).
    """
    task = problem.task
    # With clients of unequal sizes some batches are all padding, and must change nothing.
    ragged = bool(problem.client_sizes.min() < problem.client_sizes.max())

    def step(carry, inputs, batch: ClientBatch):
        params, model_state, opt_state = carry
        indices, mask, key = inputs
        images, labels = batch.images[indices], batch.labels[indices]
        if augment:
            images = augmentation.crop_and_flip(key, images)

        def objective(params):
            losses, new_state = task.losses(params, model_state, images, labels, mask, True)
            total = jnp.sum(jnp.where(mask, losses, 0.0))
            return total / jnp.maximum(jnp.sum(mask), 1), (total, new_state)

        gradient, (total, new_state) = jax.grad(objective, has_aux=True)(params)
        updates, new_opt_state = optimizer.update(gradient, opt_state, params)
        new = (optax.apply_updates(params, updates), new_state, new_opt_state)
        if ragged:
            new = optax.tree.where(jnp.any(mask), new, carry)
        return new, total

    def client_update(params, model_state, batch: ClientBatch, round_key):
        client_key = keys.client_key(round_key, batch.client_id)
        epoch_keys = jax.random.split(keys.stream(client_key, "batches"), local_epochs)
        indices, masks = jax.vmap(batches.epoch_order, in_axes=(0, None, None))(
            epoch_keys, batch.mask, batch_size
        )
        indices, masks = (leaf.reshape(-1, leaf.shape[-1]) for leaf in (indices, masks))
        step_keys = jax.random.split(keys.stream(client_key, "augment"), indices.shape[0])
        with jax.default_matmul_precision(precision):
            (after, new_state, _), losses = jax.lax.scan(
                lambda carry, inputs: step(carry, inputs, batch),
                (params, model_state, optimizer.init(params)),
                (indices, masks, step_keys),
            )
        size = jnp.sum(batch.mask).astype(jnp.float32)
        loss = jnp.sum(losses) / jnp.maximum(size * local_epochs, 1)
        delta = optax.tree.sub(params, after)
        return ClientResult(delta, size, new_state, {"loss": loss})

    return ClientStrategy(
        client_update,
        decode=lambda message, client_id, round_key, params: message,
        finalize=lambda mean_update, round_key, params: mean_update,
        finalize_state=lambda model_state, mean_state: mean_state,
    )
