"""How much of a client's scalars a coarser precision leaves: they are computed in float32 too."""

import jax
import jax.numpy as jnp

from zo_fl.engine import keys
from zo_fl.engine.strategy import ScalarsTwice
from zo_fl.engine.task import Task
from zo_fl.engine.types import Array, ClientBatch, ServerState
from zo_fl.zo import estimators, local_steps, zeroth_order
from zo_fl.zo.probing import Prober

_COMPARED = 16  # scalars


def scalars_twice(prober: Prober) -> ScalarsTwice | None:
    """Returns what compares a client's scalars with those in float32; None where they are.

    Along directions of its own, around the server's weights, on one local step's worth of examples.
    """
    fields = prober.fields
    if fields.precision == "float32":
        return None
    estimator = estimators.create(
        fields.estimator,
        prober.add_direction,
        eps=fields.eps,
        num_directions=_COMPARED,
        bound=fields.bound,
    )

    def compare(state: ServerState, batch: ClientBatch, run_key: Array) -> Array:
        client_key = keys.client_key(keys.round_key(run_key, state.round_idx), batch.client_id)
        order = local_steps.draw(fields, batch.mask, keys.stream(client_key, "batches"))
        seen = local_steps.gather(batch.examples, local_steps.first(order), fields.microbatch)
        directions = jax.random.split(keys.stream(client_key, "compared"), _COMPARED)

        def scalars(task: Task) -> Array:
            at_precision = prober._replace(task=task)
            losses = zeroth_order.losses_on(at_precision, batch, state.model_state, seen)
            return estimator.estimate(losses, seen.weights, state.params, directions).scalars

        return jnp.stack([scalars(prober.task), scalars(prober.task.with_precision("float32"))])

    return compare
