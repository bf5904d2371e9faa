"""FedAvg and its FedOpt relatives: local SGD epochs, then a server optimizer on the mean delta.

    w_i <- E epochs of mini-batch SGD from w on client i
    delta = sum_i (n_i / sum n) (w - w_i),   w <- ServerOptimizer(w, delta)

Phase one of ZOWarmUp (the warm-up) is this with ``tiers = "high"``; alone it is the paper's
"High Res Only". Running statistics of BatchNorm travel with the delta and are averaged with the
same weights, unscaled by the server's learning rate, as in the author's public code.

Source: McMahan et al. 2017; Reddi et al. 2021; ZOWarmUp, Algorithm 1, phase 1.
"""

from collections.abc import Mapping
from typing import Any

from zo_fl.engine import server_optimizers
from zo_fl.engine.fields import Block, Field, changed, take
from zo_fl.engine.phase import PARTICIPATION, Participation, Phase, Problem, make_group
from zo_fl.engine.strategy import Aggregation, Group
from zo_fl.sgd.client import LOCAL_SGD, LocalSGD, local_sgd, local_training
from zo_fl.wrap import stop as stopping

# Running statistics of BatchNorm: the mean of the clients', unscaled by the server's step size.
AGGREGATION = Aggregation(finalize_state=lambda model_state, mean_state: mean_state)


BLOCKS: dict[str, Block] = {
    "warmup": {
        "num_rounds": Field(200, "the pivot; at most, unless stop is fixed", at_least=0),
        **stopping.FIELDS,
        **changed(PARTICIPATION, tiers="high"),
        **LOCAL_SGD,
        "server_lr": Field(1.0, "server learning rate", at_least=0, varies=True),
        "server": server_optimizers.BLOCK,
    }
}


def phases(problem: Problem, *, warmup: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Returns the one phase of FedAvg; ``warmup`` is its config block."""
    return (stopping.watched(problem, phase(problem, "warmup", warmup), warmup),)


def phases_for_all(
    problem: Problem, *, warmup: Mapping[str, Any], zo: Mapping[str, Any]
) -> tuple[Phase, ...]:
    """Returns FedAvg by all clients, for as many rounds as ``zo`` has: a control.

    As second phase it is the upper bound of any method in which low-resource clients cannot
    back-propagate; the other fields are the warm-up's.
    """
    changes = {"tiers": "all", "cohort_size": zo["cohort_size"], "num_rounds": zo["num_rounds"]}
    return (phase(problem, "fedavg_all", {**warmup, **changes}),)


def phase(problem: Problem, name: str, block: Mapping[str, Any]) -> Phase:
    """Returns a phase of FedAvg.

    Args:
      problem: task and clients.
      name: the phase's.
      block: fields of ``config.warmup``.

    Raises:
      ConfigError: a cohort that cannot be drawn.
    """
    optimizer = server_optimizers.create(lr=block["server_lr"], **block["server"])
    group = first_order_clients(problem, block)
    return Phase(name, block["num_rounds"], (group,), AGGREGATION, optimizer)


def first_order_clients(problem: Problem, block: Mapping[str, Any]) -> Group:
    """Returns the clients of a FedAvg round; ``block`` has the fields of ``config.warmup``."""
    fields = take(LocalSGD, block)
    training = local_training(problem, fields)
    return make_group(
        problem,
        local_sgd(problem.task.with_precision(fields.precision), lambda state: training),
        lambda clients, examples: clients * examples * fields.local_epochs,
        take(Participation, block),
        trains=True,
    )
