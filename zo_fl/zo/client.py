"""A zeroth-order client: losses at perturbed weights, step by step, and the update they stand for.

    for each local step t:   scalars_t = estimate(F on the step's examples, w_t, directions t)
                             w_{t+1} = w_t - local_lr * gradient(scalars_t)

With one step on all examples this is ZOWarmUp's round; with k steps on k equal chunks its Table 3;
with many steps on mini-batches FedKSeed, DeComFL and FedZO. From the scalars of ``scalar_client``
anyone rebuilds the update with the keys of the directions.

Perturbed passes never touch running statistics of BatchNorm, whatever ``bn_policy`` does with them.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zo_fl.engine import cohorts, keys, precision, statistics
from zo_fl.engine.algorithm import (
    Client,
    ClientBatch,
    ClientResult,
    Group,
    Problem,
    Server,
    ServerState,
    as_sent,
)
from zo_fl.engine.fields import Block, Field, FieldError, take
from zo_fl.engine.keys import Keys
from zo_fl.engine.server import descend
from zo_fl.engine.types import Array, Examples, ModelState, Params, Task
from zo_fl.wrap import privacy
from zo_fl.wrap.privacy import Privacy
from zo_fl.zo import directions, estimators, subspace

FIELDS: Block = {
    "estimator": Field(
        "two_point",
        "estimator; two_point takes 2 S passes, forward S + 1, jvp is exact and worth 2 S",
        lambda: estimators.ESTIMATORS,
    ),
    "distribution": Field(
        "rademacher", "distribution of the directions", lambda: directions.DISTRIBUTIONS
    ),
    "eps": Field(1e-4, "perturbation scale; auto: by precision", above=0, varies=True, zero="auto"),
    "tau": Field(0.75, "standard deviation of a direction's coordinates", above=0, varies=True),
    **subspace.FIELDS,
    "num_directions": Field(3, "directions S of a local step", at_least=1, at_most=10**6),
    "local_steps": Field(1, "steps of a client's own in a round", at_least=1, at_most=10**6),
    "batch_size": Field(
        0, "examples a local step; all: the client's, split over its steps", at_least=1, zero="all"
    ),
    "bn_policy": Field("batch_sync", "use of BatchNorm's statistics", statistics.POLICIES),
    "microbatch": Field(
        0, "examples a pass; auto: a step's, or a usual client's if fewer", at_least=1, zero="auto"
    ),
    "precision": Field("float32", "precision of products", precision.available),
    **privacy.FIELDS,
}


class Probing(NamedTuple):
    """The probing of losses: values of ``FIELDS``, and the functions made of them.

    Microbatches are exact without batch statistics; with them each is normalised by itself.

    Attributes:
      task: the learning problem, at the precision of the probes.
      add_direction: from ``directions.create``.
      estimator: from ``estimators.ESTIMATORS``.
      bn_policy: as it applies to the model.
      local_lr: step size of a client's own steps.
      uniform: whether clients count the same, whatever their number of examples.
      ragged: whether clients have unequal numbers of examples.
    """

    task: Task
    add_direction: directions.AddDirection
    estimator: estimators.Estimator
    num_directions: int
    local_steps: int
    batch_size: int
    microbatch: int
    bn_policy: str
    local_lr: Any
    uniform: bool
    privacy: Privacy
    ragged: bool

    def schedule(self, examples: int) -> tuple[int, int]:
        """Returns ``(examples a local step, epochs of all steps)`` of one client."""
        size = self.batch_size or -(-examples // self.local_steps)
        return size, -(-self.local_steps // -(-examples // size))

    def forward_passes(self, clients: float, examples: float) -> float:
        """Returns single-example passes of a round of ``clients`` of ``examples`` each."""
        seen = self.batch_size * self.local_steps or examples
        unperturbed = examples if self.bn_policy in statistics.UPLOADED else 0
        return clients * (seen * self.estimator.passes + unperturbed)


def make_probing(
    problem: Problem, block: Mapping[str, Any], local_lr: Any, uniform: bool = False
) -> Probing:
    """Returns the probing of a config block's clients; ``block`` has ``FIELDS``.

    Raises:
      FieldError: the directions would move no parameter.
    """
    eps, task = scale(block), problem.task
    like, _ = jax.eval_shape(task.init, jax.random.key(0))
    add_direction = directions.create(block["distribution"], block["tau"])
    add_direction = subspace.restrict(add_direction, block["params"], block["density"], like)
    make_estimator = estimators.ESTIMATORS[block["estimator"]]
    count, bound = block["num_directions"], block["bound"]
    return Probing(
        task=task.with_precision(block["precision"]),
        add_direction=add_direction,
        estimator=make_estimator(add_direction, eps=eps, num_directions=count, bound=bound),
        num_directions=count,
        local_steps=block["local_steps"],
        batch_size=block["batch_size"],
        microbatch=block["microbatch"] or _usual_size(problem),
        bn_policy=block["bn_policy"] if task.has_statistics else "frozen",
        local_lr=local_lr,
        uniform=uniform,
        privacy=take(Privacy, block),
        ragged=cohorts.is_ragged(problem),
    )


def scale(block: Mapping[str, Any]) -> Any:
    """Returns the perturbation scale of a config block, chosen by its precision or given."""
    given = isinstance(block["eps"], jax.Array) or block["eps"]  # traced where runs differ in it
    return block["eps"] if given else precision.best_eps(block["precision"])


def _usual_size(problem: Problem) -> int:
    """Returns the examples of a usual client where another has more than twice as many, else 0.

    So many are evaluated at once, lest every client takes the time of the largest. Batch statistics
    are of all of a step's examples.
    """
    sizes = np.asarray(problem.clients.client_sizes)
    usual = math.ceil(sizes.mean())
    return usual if sizes.max() > 2 * usual and not problem.task.has_statistics else 0


def probe(
    probing: Probing,
    state: ServerState,
    batch: ClientBatch,
    own: Keys,
    keys_of_step: Callable[[Array], Array],
) -> tuple[ClientResult, Params]:
    """Runs the local steps of one client.

    ``keys_of_step`` returns the keys ``key[S]`` of the directions of a step, by the step's number.

    Returns:
      What it sends, its scalars ``f32[k, S]``, and its own weights after the last step. A client
      without a finite probe has weight 0: it drops out of the round.
    """
    rows, masks = _steps(probing, batch.mask, keys.stream(own.client, "batches"))

    def step(params, inputs):
        index, rows, mask = inputs
        examples = batch.examples
        if rows is not None:
            examples = jax.tree.map(lambda leaf: leaf[rows], examples)
        # One key for all passes of a step: both sides of a pair draw the same.
        of_module = jax.random.fold_in(keys.stream(own.client, "module"), index)
        losses, weights = _losses(probing, state.model_state, examples, mask, of_module)
        of_directions = keys_of_step(index)
        estimate = probing.estimator.estimate(losses, weights, params, of_directions)
        noise_key = jax.random.fold_in(keys.stream(own.client, "privacy"), index)
        scalars = privacy.noisy_scalars(probing.privacy, estimate.scalars, weights, noise_key)
        coefficients = -probing.local_lr * probing.estimator.coefficients(scalars)
        after = estimators.combine(probing.add_direction, coefficients, of_directions, params)
        return after, (scalars, estimate.loss)

    steps = (jnp.arange(probing.local_steps), rows, masks)
    if probing.local_steps == 1:  # no loop: the local weights are not computed unless asked for
        after, outputs = step(state.params, jax.tree.map(lambda leaf: leaf[0], steps))
        scalars, losses = jax.tree.map(lambda leaf: leaf[None], outputs)
    else:
        after, (scalars, losses) = jax.lax.scan(step, state.params, steps)
    whole = _microbatches(probing, batch.examples, batch.mask)
    size = jnp.sum(batch.mask).astype(jnp.float32)
    size = jnp.where(jnp.any(jnp.isfinite(scalars)), size, 0.0)
    result = ClientResult(
        message=scalars,
        weight=(size > 0).astype(jnp.float32) if probing.uniform else size,
        model_state=statistics.of_client(
            probing.task, probing.bn_policy, state, *whole, keys.stream(own.client, "module")
        ),
        metrics={"loss": jnp.mean(losses, where=jnp.isfinite(losses))},
    )
    return result, after


def _steps(probing: Probing, mask: Array, key: Array) -> tuple[Array | None, Array]:
    """Returns ``(rows i32[k, b], mask bool[k, b])``, the examples of each local step of a client.

    Rows are None if one step sees all examples, in their order. Mini-batches go through the
    shuffled examples, again and again if there are more steps than batches.
    """
    count = probing.local_steps
    if count == 1 and not probing.batch_size:
        return None, mask[None]
    size, epochs = probing.schedule(len(mask))
    epoch_keys = jax.random.split(key, epochs)
    rows, masks = jax.vmap(cohorts.epoch_order, in_axes=(0, None, None))(epoch_keys, mask, size)
    rows, masks = (leaf.reshape(-1, leaf.shape[-1])[:count] for leaf in (rows, masks))
    return rows, masks


def _microbatches(probing: Probing, examples: Examples, mask: Array) -> tuple[Examples, Array]:
    """Returns examples and mask with leading axes ``[batches, size]``, padded by masked ones."""
    return cohorts.batched((examples, mask), min(probing.microbatch or len(mask), len(mask)))


def _losses(
    probing: Probing, model_state: ModelState, examples: Examples, mask: Array, key: Array
) -> tuple[Callable[[Params], Array], Array]:
    """Returns ``params -> f32[n]``, the losses of some examples, and their weights ``f32[n]``."""
    batches = _microbatches(probing, examples, mask)
    of_the_batch = probing.bn_policy in statistics.OF_THE_BATCH

    def losses(params):
        def one(part):
            examples, mask = part
            return probing.task.losses(params, model_state, examples, mask, of_the_batch, key)[0]

        def one_if_any(part):
            _, mask = part
            return cohorts.if_any(mask, lambda: one(part), lambda: jnp.zeros(len(mask)))

        return jax.lax.map(one_if_any if probing.ragged else one, batches).reshape(-1)

    return losses, batches[1].reshape(-1) / jnp.maximum(jnp.sum(batches[1]), 1)


def directions_key(own: Keys, shared: bool = False) -> Array:
    """Returns the key of the directions of a client in a round, or of all clients'."""
    return keys.stream(own.round if shared else own.client, "directions")


def step_keys(root: Array, num_directions: int, step: int | Array) -> Array:
    """Returns ``key[S]``: the directions of a local step, by one count over all steps."""
    indices = step * num_directions + jnp.arange(num_directions)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(root, indices)


def rebuild(probing: Probing, scalars: Array, root: Array, like: Params) -> Params:
    """Returns the sum of the k gradient estimates of scalars ``f32[k, S]``, like ``like``."""
    coefficients = jax.vmap(probing.estimator.coefficients)(scalars).reshape(-1)
    of_steps, zeros = step_keys(root, scalars.size, 0), optax.tree.zeros_like(like)
    return estimators.combine(probing.add_direction, coefficients, of_steps, zeros)


def scalar_client(probing: Probing, shared: bool) -> Client:
    """Returns the client whose message is ``f32[k, S]`` scalars of k local steps.

    Where directions are shared by all clients, the server rebuilds the update once, from the mean
    of the messages (``scalar_server``).
    """

    def update(state: ServerState, batch: ClientBatch, own: Keys) -> ClientResult:
        root = directions_key(own, shared)
        keys_of_step = functools.partial(step_keys, root, probing.num_directions)
        return probe(probing, state, batch, own, keys_of_step)[0]

    def decode(message, state: ServerState, own: Keys) -> Params:
        return rebuild(probing, message, directions_key(own), state.params)

    one_model = shared and probing.local_steps == 1
    reading = as_sent if shared else decode
    return Client(update, reading, replays=True, read_alone=not shared, one_model=one_model)


def scalar_server(
    probing: Probing, shared: bool, optimizer: optax.GradientTransformation
) -> Server:
    """Returns the server of ``scalar_client``: it descends along the rebuilt gradient."""

    def gradient(mean, state: ServerState, of_round: Keys):
        if shared:
            mean = rebuild(probing, mean, directions_key(of_round, shared), state.params)
        return mean, state.strategy_state

    return descend(optimizer, gradient, statistics=statistics.of_server(probing.bn_policy))


def make_group(
    problem: Problem, probing: Probing, client: Client, block: Mapping[str, Any]
) -> Group:
    """Returns the group of clients that probe, and what it discloses of one example.

    Raises:
      FieldError: a cohort that cannot be drawn; noise without a bound, or where an example moves
        the losses of others.
    """
    group = cohorts.make_group(problem, client, probing.forward_passes, block)
    if probing.privacy.noise and probing.bn_policy != "frozen":
        raise FieldError(
            "bn_policy",
            f"={probing.bn_policy!r}: statistics of a batch reveal what no noise hides; allowed "
            "with noise: frozen",
        )
    size, epochs = probing.schedule(longest := problem.clients.client_indices.shape[1])
    chosen = {} if (eps := scale(block)) is block["eps"] else {"eps": eps}
    if not block["microbatch"]:
        chosen["microbatch"] = min(probing.microbatch or size, size, longest)
    release = privacy.release(probing.privacy, times=epochs)
    return group._replace(release=release, chosen=chosen)
