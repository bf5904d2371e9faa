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

from collections.abc import Mapping
from typing import Any

from zo_fl.engine import server_optimizers
from zo_fl.engine.fields import Block, Field, take
from zo_fl.engine.phase import PARTICIPATION, Participation, Phase, Problem, cohort_size, make_group
from zo_fl.engine.strategy import Aggregation, Group
from zo_fl.zo import private_scalars
from zo_fl.zo.probing import PROBING, Probing, make_prober
from zo_fl.zo.rebuilding import scalar_aggregation
from zo_fl.zo.scalars import scalar_strategy

SEED_POLICIES = ("per_client", "shared")
AGGREGATIONS = ("mean", "sum")
WEIGHTS = ("examples", "uniform")


# What the blocks of all zeroth-order methods have; some fix a few of the fields.
FIELDS: Block = {
    "num_rounds": Field(300, "rounds", at_least=0),
    **PARTICIPATION,
    "weights": Field("examples", "of clients in the mean", WEIGHTS),
    "seed_policy": Field("per_client", "directions of each client's own, or shared", SEED_POLICIES),
    "aggregation": Field("mean", "or the printed algorithm's sum", AGGREGATIONS),
    **PROBING,
    "lr": Field(2e-4, "server and client rates multiplied, for a mean", at_least=0, varies=True),
    "local_lr": Field(0.0, "between a client's own steps; 0 = lr", at_least=0),
    "server": server_optimizers.BLOCK,
}
BLOCKS: dict[str, Block] = {"zo": FIELDS}


def phases(problem: Problem, *, zo: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Returns the one phase of zeroth-order training; ``zo`` is its config block."""
    return (phase(problem, "zo", zo),)


def phase(problem: Problem, name: str, block: Mapping[str, Any]) -> Phase:
    """Returns a phase of zeroth-order rounds.

    Args:
      problem: task and clients.
      name: the phase's.
      block: the fields of ``config.zo``.

    Raises:
      ConfigError: a cohort that cannot be drawn.
    """
    optimizer = server_optimizers.create(lr=block["lr"], **block["server"])
    group, aggregation, _ = zeroth_order_clients(problem, block)
    revealed = private_scalars.release(take(Probing, block), problem)
    return Phase(name, block["num_rounds"], (group,), aggregation, optimizer, release=revealed)


def zeroth_order_clients(
    problem: Problem, block: Mapping[str, Any]
) -> tuple[Group, Aggregation, float]:
    """Returns the clients of a zeroth-order round, the server's side, and the sum's scale.

    Args:
      problem: task and clients.
      block: the fields of ``config.zo``; ``num_rounds`` and ``server`` are not read. A sum
        (``aggregation``) weighs clients alike, whatever ``weights`` says.
    """
    who, fields = take(Participation, block), take(Probing, block)
    is_sum, shared = block["aggregation"] == "sum", block["seed_policy"] == "shared"
    scale = cohort_size(problem, who) * fields.num_directions if is_sum else 1
    prober = make_prober(problem.task, fields, block["local_lr"] or block["lr"] * scale)
    uniform = block["weights"] == "uniform" or is_sum
    group = make_group(
        problem,
        scalar_strategy(prober, shared=shared, uniform=uniform),
        prober.forward_passes,
        who,
    )
    return group, scalar_aggregation(prober, shared, scale), scale
