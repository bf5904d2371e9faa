"""DeComFL: shared directions, several local steps, a handful of scalars both ways.

    for each local step t: g_{i,t,p} = difference of losses along z_{t,p} at w_{i,t};  every client
    probes the *same* z_{t,p}, takes the step with its own g and forgets it at the end of the round
    server: g_{t,p} = mean_i g_{i,t,p},   w <- w - lr sum_t 1/P sum_p g_{t,p} z_{t,p}

A client that was away follows by replaying the averaged scalars of the rounds it missed
(``FederatedAlgorithm.apply``). This is the zeroth-order round with shared directions, uniform
weights and local steps on mini-batches.

Differs from the source: directions come from keys, so their seeds do not travel; there is no local
momentum and no schedule of the number of directions.

Source: Li et al., "Achieving Dimension-Free Communication in Federated Learning via Zeroth-Order
Optimization", ICLR 2025 (arXiv 2405.15861).
"""

from collections.abc import Mapping
from typing import Any

from zo_fl.engine.fields import Block, changed, without
from zo_fl.engine.phase import Phase, Problem
from zo_fl.zo import methods as zo

FIXED = {"seed_policy": "shared", "aggregation": "mean", "weights": "uniform"}


BLOCKS: dict[str, Block] = {
    "decomfl": changed(
        without(zo.FIELDS, *FIXED),
        num_rounds=500,
        distribution="gaussian",
        eps=1e-3,
        tau=1.0,
        num_directions=5,
        local_steps=4,
        batch_size=64,
        lr=1e-5,
    )
}


def phases(problem: Problem, *, decomfl: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Returns the one phase of DeComFL; ``decomfl`` is its config block."""
    return (zo.phase(problem, "decomfl", {**decomfl, **FIXED}),)
