"""The zeroth-order round: clients send S loss differences, everyone rebuilds the same update.

    scalar_{j,m} = F_j(w + eps z_{j,m}) - F_j(w - eps z_{j,m}),    z_{j,m} = z(round, client j, m)
    g = sum_j (n_j / sum n) 1/S sum_m scalar_{j,m} / (2 eps) z_{j,m},    w <- ServerOptimizer(w, g)

F_j is the mean cross-entropy over *all* of the client's training examples; one step a round. Phase
two of ZOWarmUp is this with all clients; alone it is zeroth-order training from scratch.

BatchNorm in a pass that has no gradient is an open choice in the paper; ``bn_policy`` makes it
explicit. Perturbed passes never touch running statistics, whatever the policy.

    policy        losses are computed with       running statistics
    frozen        the running statistics         stay as they were at the pivot
    batch         the client's batch statistics  stay as they were at the pivot
    batch_sync    the client's batch statistics  one unperturbed pass a round moves them by the
                                                 usual momentum; n_k-weighted mean of the clients'
    recalibrate   the running statistics         replaced every round by the exact pooled statistics
                                                 of all clients' unperturbed passes

The last two upload statistics beside the scalars, and are billed for them.

Source: ZOWarmUp, Algorithm 1, phase 2, with the printed errors mended: the update is subtracted,
all clients update, and terms are averaged (``aggregation = "sum"`` gives the printed sum, whose
step size is S * |cohort| times smaller for the same update).
"""

import jax
import jax.numpy as jnp

from zo_fl import keys, server_optimizers, statistics, trees
from zo_fl.data import augment as augmentation
from zo_fl.errors import ConfigError
from zo_fl.phase import Phase, Problem, make_cohorts
from zo_fl.round import make_algorithm
from zo_fl.task import Task
from zo_fl.types import ClientBatch, ClientResult, ClientStrategy
from zo_fl.zo import directions, estimators

BN_POLICIES = ("frozen", "batch", "batch_sync", "recalibrate")
SEED_POLICIES = ("per_client", "shared")
AGGREGATIONS = ("mean", "sum")


def phases(problem: Problem, *, zo: dict) -> tuple[Phase, ...]:
    """Returns the one phase of zeroth-order training; ``zo`` is the config block of ``phase``."""
    return (phase(problem, **zo),)


def phase(
    problem: Problem,
    *,
    num_rounds: int,
    cohort_size: int,
    tiers: str,
    participation: str,
    estimator: str,
    distribution: str,
    eps: float,
    tau: float,
    num_directions: int,
    seed_policy: str,
    aggregation: str,
    bn_policy: str,
    microbatch: int,
    lr: float,
    server: dict,
    augment: bool,
    precision: str,
) -> Phase:
    """Returns a phase of zeroth-order rounds; the arguments are the fields of ``config.zo``.

    Raises:
      ConfigError: an unknown name or a number out of range.
    """
    _check("bn_policy", bn_policy, BN_POLICIES)
    _check("seed_policy", seed_policy, SEED_POLICIES)
    _check("aggregation", aggregation, AGGREGATIONS)
    _check("estimator", estimator, estimators.ESTIMATORS)
    if microbatch < 0:
        raise ConfigError(
            f"microbatch is {microbatch}; it must be >= 0; change config.zo.microbatch"
        )
    sample_cohort, size, examples = make_cohorts(problem, "zo", tiers, cohort_size, participation)
    add_direction = directions.create(distribution=distribution, tau=tau)
    estimator_ = estimators.ESTIMATORS[estimator](
        add_direction, eps=eps, num_directions=num_directions
    )
    if not problem.task.has_statistics:
        bn_policy = "frozen"
    strategy = scalar_round(
        problem.task,
        estimator_,
        shared_directions=seed_policy == "shared",
        scale=size * num_directions if aggregation == "sum" else 1,
        bn_policy=bn_policy,
        microbatch=microbatch,
        augment=augment,
        precision=precision,
    )
    algorithm = make_algorithm(
        strategy, server_optimizers.create(lr=lr, **server), sample_cohort, problem.engine
    )
    passes = estimator_.passes + (bn_policy in ("batch_sync", "recalibrate"))
    return Phase("zo", num_rounds, algorithm, strategy, size, examples, passes)


def scalar_round(
    task: Task,
    estimator: estimators.Estimator,
    *,
    shared_directions: bool,
    scale: float,
    bn_policy: str,
    microbatch: int,
    augment: bool,
    precision: str,
) -> ClientStrategy:
    """Returns the strategy whose message is ``f32[S]`` scalars.

    Args:
      task: the learning problem.
      estimator: from ``zo.estimators``.
      shared_directions: all clients use the same S directions of the round; the scalars are
        averaged and the update is rebuilt once.
      scale: factor on the mean update.
      bn_policy: one of ``BN_POLICIES``.
      microbatch: examples a forward pass, 0 = all at once. Exact without batch statistics; with
        them each microbatch is normalised by itself.
      augment: random crop and flip, drawn once a round and client: all passes see the same pixels.
      precision: matrix product precision. A perturbation of eps * tau = 7.5e-5 drowns in bfloat16
        and TensorFloat-32, so ``highest`` unless eps is raised.
    """

    def directions_key(round_key, client_id):
        root = round_key if shared_directions else keys.client_key(round_key, client_id)
        return keys.stream(root, "directions")

    def client_update(params, model_state, batch: ClientBatch, round_key):
        images = batch.images
        if augment:
            key = keys.stream(keys.client_key(round_key, batch.client_id), "augment")
            images = augmentation.crop_and_flip(key, images)
        images, labels, mask = _split(images, batch.labels, batch.mask, microbatch)
        size = jnp.sum(mask).astype(jnp.float32)
        use_batch_statistics = bn_policy in ("batch", "batch_sync")

        def losses(params):
            def one(inputs):
                return task.losses(params, model_state, *inputs, use_batch_statistics)[0]

            return jax.lax.map(one, (images, labels, mask)).reshape(-1)

        with jax.default_matmul_precision(precision):
            weights = mask.reshape(-1) / jnp.maximum(size, 1)
            estimate = estimator.estimate(
                losses, weights, params, directions_key(round_key, batch.client_id)
            )
            uploaded = _statistics(task, bn_policy, params, model_state, images, mask)
        # A client without one finite probe drops out of the round.
        weight = jnp.where(jnp.any(jnp.isfinite(estimate.scalars)), size, 0.0)
        return ClientResult(estimate.scalars, weight, uploaded, {"loss": estimate.loss})

    def rebuild(scalars, key, params):
        return trees.scale(estimator.reconstruct(scalars, key, params), scale)

    def decode(message, client_id, round_key, params):
        if shared_directions:
            return message
        return rebuild(message, directions_key(round_key, client_id), params)

    def finalize(mean_update, round_key, params):
        if shared_directions:
            return rebuild(mean_update, directions_key(round_key, 0), params)
        return mean_update

    return ClientStrategy(client_update, decode, finalize, _FINALIZE_STATE[bn_policy], replays=True)


def _split(images, labels, mask, microbatch: int):
    """Returns the arrays with leading axes ``[batches, microbatch]``, padded by masked examples."""
    count = mask.shape[0]
    size = min(microbatch or count, count)
    missing = -count % size

    def one(leaf):
        padded = jnp.pad(leaf, [(0, missing)] + [(0, 0)] * (leaf.ndim - 1))
        return padded.reshape(-1, size, *leaf.shape[1:])

    return one(images), one(labels), one(mask)


def _statistics(task: Task, bn_policy: str, params, model_state, images, mask):
    """Returns the statistics a client uploads: ``{}`` unless the policy sends some."""
    if bn_policy not in ("batch_sync", "recalibrate"):
        return {}
    moments = statistics.batch_moments(task, params, model_state, images, mask)
    if bn_policy == "recalibrate":
        return moments
    return statistics.move(model_state, statistics.from_moments(moments))


_FINALIZE_STATE = {
    "frozen": lambda model_state, uploaded: model_state,
    "batch": lambda model_state, uploaded: model_state,
    "batch_sync": lambda model_state, uploaded: uploaded,
    "recalibrate": lambda model_state, uploaded: statistics.from_moments(uploaded),
}


def _check(field: str, given: str, allowed) -> None:
    if given not in allowed:
        raise ConfigError(
            f"unknown {field} {given!r}; allowed: {', '.join(allowed)}; change config.zo.{field}"
        )
