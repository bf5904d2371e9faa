"""Whether the precision of a run leaves anything of the small differences that clients send."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from zo_fl.engine import cohorts, keys, trees
from zo_fl.engine.phase import Phase
from zo_fl.engine.types import Array, FederatedData, ServerState

_TOLERATED = 0.2  # relative error


def warning(
    phase: Phase,
    state: ServerState,
    clients: FederatedData,
    run_key: Array,
    compiler_options: Mapping[str, Any],
) -> str | None:
    """Returns a line about the scalars of a phase's first client, None where they are in order.

    Args:
      phase: about to begin.
      state: its first.
      clients: what clients look at, on the host.
      run_key: ``key[]``.
      compiler_options: of the engine.
    """
    for group in phase.groups:
        compare = group.strategy.scalars_twice
        if compare is None:
            continue
        cohort = group.sample_cohort(keys.round_key(run_key, state.round_idx))
        client = int(np.asarray(cohort.client_ids)[0])
        batch = trees.squeeze(cohorts.gather(clients, np.array([client])))  # pyright: ignore
        program = jax.jit(compare, compiler_options=dict(compiler_options))
        found, exact = np.asarray(program(state._replace(opt_state=()), batch, run_key), np.float64)
        spread = np.sqrt(np.mean(exact**2))
        error = np.sqrt(np.mean((found - exact) ** 2)) / spread if spread else np.inf
        if error > _TOLERATED:
            correlation = np.corrcoef(found, exact)[0, 1] if found.std() and exact.std() else 0.0
            return (
                f"{phase.name}: at this precision {len(exact)} scalars of client {client} have a "
                f"correlation of {correlation:.2f} with those in float32, and a relative error of "
                f"{100 * error:.0f} %: raise the perturbation (eps, radius), or set precision to "
                "float32"
            )
    return None
