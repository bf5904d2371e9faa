"""Several rounds as one jitted program: what the trainer dispatches, and benchmarks time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zo_fl.core.types import FederatedAlgorithm, ServerState


def make_chunk(
    algorithm: FederatedAlgorithm,
    capacity: int,
    over_seeds: bool = False,
    compiler_options: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    """Returns jitted ``(state, data, run_key, num_rounds i32[]) -> (state, metrics)``.

    Args:
      algorithm: what a round does.
      capacity: the largest ``num_rounds``; metrics are ``f32[capacity]``, filled up to num_rounds.
      over_seeds: states, keys and metrics have a leading axis of seeds; the data are shared.
      compiler_options: see ``jax.jit``; an engine has those of its devices.

    The state is donated. The number of rounds is an argument: one program serves every chunk.
    """

    def run_chunk(state: ServerState, data, run_key, num_rounds):
        shapes = jax.eval_shape(algorithm.round, state, data, run_key)[1]
        buffers = jax.tree.map(lambda leaf: jnp.zeros(capacity, leaf.dtype), shapes)

        def body(i, carry):
            state, buffers = carry
            state, metrics, _ = algorithm.round(state, data, run_key)
            return state, jax.tree.map(lambda b, m: b.at[i].set(m), buffers, metrics)

        return jax.lax.fori_loop(0, num_rounds, body, (state, buffers))

    mapped = jax.vmap(run_chunk, in_axes=(0, None, 0, None)) if over_seeds else run_chunk
    return jax.jit(mapped, donate_argnums=0, compiler_options=compiler_options)
