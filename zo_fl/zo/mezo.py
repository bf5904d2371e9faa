"""MeZO: in-place zeroth-order SGD of one learner, here of one client a round.

    g = (F(w + eps z) - F(w - eps z)) / (2 eps) on a mini-batch,   w <- w - lr (g z + wd w)

With ``data.num_clients = 1`` this is MeZO proper; with more, the learner visits one of them a
round. Momentum and Adam need no stored history beyond the scalars: ``FederatedAlgorithm.apply``
rebuilds parameters and moments from (key, scalar) pairs alone. It is the zeroth-order round with a
cohort of one.

Differs from the source: w + eps z and w - eps z are both computed from the same w, where the source
adds and subtracts in place and drifts; weight decay is applied to all parameters.

Source: Malladi et al., "Fine-Tuning Language Models with Just Forward Passes", NeurIPS 2023
(arXiv 2305.17333).
"""

from collections.abc import Mapping
from typing import Any

from zo_fl.engine.fields import Block, changed, without
from zo_fl.engine.phase import Phase, Problem
from zo_fl.zo import methods as zo

FIXED = {
    "cohort_size": 1,
    "tiers": "all",
    "participation": "uniform",
    "weights": "examples",
    "seed_policy": "per_client",
    "aggregation": "mean",
    "local_steps": 1,
    "local_lr": 0.0,
}


BLOCKS: dict[str, Block] = {
    "mezo": changed(
        without(zo.FIELDS, *FIXED),
        num_rounds=500,
        distribution="gaussian",
        eps=1e-3,
        tau=1.0,
        num_directions=1,
        batch_size=64,
        lr=1e-5,
    )
}


def phases(problem: Problem, *, mezo: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Returns the one phase of MeZO; ``mezo`` is its config block."""
    return (zo.phase(problem, "mezo", {**mezo, **FIXED}),)
