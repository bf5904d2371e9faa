"""What a client computes in any zeroth-order round: losses at perturbed weights, step by step.

    for each local step t:   scalars_t = estimate(F on the step's examples, w_t, directions t)
                             w_{t+1} = w_t - local_lr * gradient(scalars_t)

With one step on all examples this is ZOWarmUp's round; with k steps on k equal chunks its Table 3;
with many steps on mini-batches FedKSeed, DeComFL and FedZO. Which directions are probed, what is
sent and what the server makes of it is the methods' own affair (``zo_fl/algorithms``).

Perturbed passes never touch running statistics of BatchNorm, whatever ``bn_policy`` does with them
(``batch_statistics``).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zo_fl.engine import keys
from zo_fl.engine import losses as client_losses
from zo_fl.engine import statistics as batch_statistics
from zo_fl.engine.types import Array, ClientBatch, ModelState, Params, ServerState
from zo_fl.wrap import privacy
from zo_fl.zo import estimators, local_steps
from zo_fl.zo.local_steps import Microbatches, Order
from zo_fl.zo.probing import Prober


class Probes(NamedTuple):
    """What a client has after its local steps.

    Attributes:
      scalars: ``f32[k, S]``.
      params: its own weights after the last step.
      statistics: what it uploads of batch statistics, ``{}`` unless the policy sends some.
      loss: ``f32[]`` mean over the steps.
      size: ``f32[]`` its examples; 0 if not one probe was finite: it drops out of the round.
    """

    scalars: Array
    params: Params
    statistics: ModelState
    loss: Array
    size: Array


def probe(
    prober: Prober,
    state: ServerState,
    batch: ClientBatch,
    run_key: Array,
    draw_keys: Callable[[Array], Array],
) -> Probes:
    """Returns what one client learns in one round.

    Args:
      prober: how.
      state: what the server sent.
      batch: the client's examples.
      run_key: ``key[]``.
      draw_keys: ``i32[] local step -> key[S]``: the directions of the step.
    """
    fields, examples = prober.fields, batch.examples
    client_key = keys.client_key(keys.round_key(run_key, state.round_idx), batch.client_id)
    if fields.augment:
        examples = prober.task.augment(keys.stream(client_key, "augment"), examples)
    order = local_steps.draw(fields, batch.mask, keys.stream(client_key, "batches"))

    def step(params, inputs):
        index, of_step = inputs
        seen = local_steps.gather(examples, of_step, fields.microbatch)
        losses = losses_on(prober, batch, state.model_state, seen)
        step_keys = draw_keys(index)
        estimate = prober.estimator.estimate(losses, seen.weights, params, step_keys)
        noise_key = jax.random.fold_in(keys.stream(client_key, "privacy"), index)
        scalars = privacy.noisy_scalars(fields.privacy, estimate.scalars, seen.weights, noise_key)
        coefficients = -prober.local_lr * prober.estimator.coefficients(scalars)
        after = estimators.combine(prober.add_direction, coefficients, step_keys, params)
        return after, (scalars, estimate.loss)

    if fields.local_steps == 1:  # no loop: the local weights are not computed unless asked for
        after, sent = step(state.params, (jnp.int32(0), local_steps.first(order)))
        scalars, losses = sent[0][None], sent[1][None]
    else:
        steps = (jnp.arange(fields.local_steps), order)
        after, (scalars, losses) = jax.lax.scan(step, state.params, steps)
    whole = local_steps.gather(examples, Order(None, batch.mask), fields.microbatch)
    uploaded = batch_statistics.of_client(prober.task, fields.bn_policy, state, *whole)
    size = jnp.sum(batch.mask).astype(jnp.float32)
    size = jnp.where(jnp.any(jnp.isfinite(scalars)), size, 0.0)
    loss = jnp.mean(losses, where=jnp.isfinite(losses))
    return Probes(scalars, after, uploaded, loss, size)


def losses_on(
    prober: Prober, batch: ClientBatch, model_state: ModelState, seen: Microbatches
) -> Callable[[Params], Array]:
    """Returns ``params -> f32[n]``, the losses of a client's step, microbatch after microbatch."""
    use_batch_statistics = prober.fields.bn_policy in batch_statistics.OF_THE_BATCH
    losses_of = client_losses.of_client(prober.task, prober.fields.loss, batch)

    def losses(params):
        def one(inputs):
            examples, mask = inputs
            return losses_of(params, model_state, examples, mask, use_batch_statistics)[0]

        return jax.lax.map(one, tuple(seen)).reshape(-1)

    return losses
