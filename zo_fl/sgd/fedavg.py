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

from zo_fl.engine import cohorts, server
from zo_fl.engine.algorithm import Group, Phase, Problem, Server
from zo_fl.engine.fields import Block, Field, changed
from zo_fl.sgd import client
from zo_fl.wrap import stop

FIELDS: Block = {
    "num_rounds": Field(200, "rounds until the pivot; at most, unless stop is fixed", at_least=0),
    **stop.FIELDS,
    **changed(cohorts.FIELDS, tiers="high"),
    **client.FIELDS,
    "server_lr": Field(1.0, "server learning rate", at_least=0, varies=True),
    "server": server.FIELD,
}
BLOCKS: dict[str, Block] = {"warmup": FIELDS}


def phases(problem: Problem, *, warmup: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Returns the one phase of FedAvg; ``warmup`` is its config block."""
    return (stop.early(problem, phase(problem, "warmup", warmup), warmup),)


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
    """Returns a phase of FedAvg; ``block`` has ``FIELDS``.

    Raises:
      FieldError: a cohort that cannot be drawn.
    """
    return Phase(name, block["num_rounds"], (clients(problem, block),), averaging(block))


def clients(problem: Problem, block: Mapping[str, Any]) -> Group:
    """Returns the clients of a FedAvg round; ``block`` has ``FIELDS``."""
    training = client.local_training(problem, block)
    task = problem.task.with_precision(block["precision"])
    sending = client.local_sgd(task, lambda state: training)
    return cohorts.make_group(problem, sending, client.forward_passes(block), block, trains=True)


def averaging(block: Mapping[str, Any]) -> Server:
    """Returns the server of FedAvg; ``block`` has ``FIELDS``."""
    return server.descend(
        server.optimizer(block["server"], block["server_lr"]),
        statistics=lambda running, uploaded: uploaded,
    )
