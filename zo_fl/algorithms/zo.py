"""The zeroth-order round: clients send S loss differences, everyone rebuilds the same update.

    scalar_{j,m} = F_j(w + eps z_{j,m}) - F_j(w - eps z_{j,m}),    z_{j,m} = z(round, client j, m)
    g = sum_j (n_j / sum n) 1/S sum_m scalar_{j,m} / (2 eps) z_{j,m},    w <- ServerOptimizer(w, g)

F_j is the mean cross-entropy over *all* of the client's training examples; one step a round. Phase
two of ZOWarmUp is this with all clients; alone it is zeroth-order training from scratch. With
``local_steps = k`` (Table 3) a client's examples are shuffled and split into k chunks of equal
size; it takes a step of its own after each, and g sums the k gradients of each client. (A client
with fewer examples than others has fewer, or emptier, chunks.)

Source: ZOWarmUp, Algorithm 1, phase 2, with the printed errors mended: the update is subtracted,
all clients update, and terms are averaged (``aggregation = "sum"`` gives the printed sum, whose
step size is S * |cohort| times smaller for the same update).
"""

from typing import Any

from zo_fl.clients import zeroth_order
from zo_fl.clients.scalars import scalar_aggregation, scalar_strategy
from zo_fl.clients.zeroth_order import check_name
from zo_fl.core import server_optimizers
from zo_fl.core.phase import Phase, Problem, eligible_clients, make_group, make_phase
from zo_fl.core.types import (
    Aggregation,
    Group,
)

SEED_POLICIES = ("per_client", "shared")
AGGREGATIONS = ("mean", "sum")
WEIGHTS = ("examples", "uniform")


def phases(problem: Problem, *, zo: dict) -> tuple[Phase, ...]:
    """Returns the one phase of zeroth-order training; ``zo`` is the config block of ``phase``."""
    return (phase(problem, **zo),)


def phase(
    problem: Problem, *, block: str = "zo", num_rounds: int, server: dict, **clients: Any
) -> Phase:
    """Returns a phase of zeroth-order rounds.

    Args:
      problem: task and clients.
      block: the config block, for error messages and as the phase's name.
      num_rounds: rounds.
      server: server optimizer, see ``server_optimizers.create``.
      **clients: the other fields of the block, see ``zeroth_order_clients``.

    Raises:
      ConfigError: an unknown name or a number out of range.
    """
    optimizer = server_optimizers.create(lr=clients["lr"], **server)
    group, aggregation, _ = zeroth_order_clients(problem, block=block, **clients)
    return make_phase(problem, block, num_rounds, (group,), optimizer, aggregation)


def zeroth_order_clients(
    problem: Problem,
    *,
    block: str,
    cohort_size: int,
    tiers: str,
    participation: str,
    weights: str,
    seed_policy: str,
    aggregation: str,
    lr: float,
    local_lr: float,
    **probing: Any,
) -> tuple[Group, Aggregation, float]:
    """Returns the clients of a zeroth-order round, the server's side, and the sum's scale.

    Args:
      problem: task and clients.
      block: the config block.
      cohort_size: see ``make_group``; likewise ``tiers`` and ``participation``.
      tiers: see above.
      participation: see above.
      weights: of clients in the mean: ``examples`` or ``uniform``; a sum is always uniform.
      seed_policy: ``per_client`` or ``shared``: all clients probe the same S directions of the
        round; the scalars are averaged and the update is rebuilt once.
      aggregation: ``mean``, or the printed algorithm's ``sum`` over clients and directions.
      lr: server step size.
      local_lr: step size between a client's own steps; 0 = ``lr``, scaled to the mean.
      **probing: see ``zeroth_order.make_prober``.
    """
    check_name(block, "seed_policy", seed_policy, SEED_POLICIES)
    check_name(block, "aggregation", aggregation, AGGREGATIONS)
    check_name(block, "weights", weights, WEIGHTS)
    size = cohort_size or len(eligible_clients(problem, block, tiers))
    scale = size * probing["num_directions"] if aggregation == "sum" else 1
    prober = zeroth_order.make_prober(
        problem.task, block=block, local_lr=local_lr or lr * scale, **probing
    )
    shared = seed_policy == "shared"
    uniform = weights == "uniform" or aggregation == "sum"
    group = make_group(
        problem,
        scalar_strategy(prober, shared=shared, uniform=uniform),
        lambda clients, examples: zeroth_order.forward_passes(prober, clients, examples),
        block=block,
        tiers=tiers,
        cohort_size=cohort_size,
        participation=participation,
    )
    return group, scalar_aggregation(prober, shared, scale), scale
