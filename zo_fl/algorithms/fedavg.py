"""FedAvg and its FedOpt relatives: local SGD epochs, then a server optimizer on the mean delta.

    w_i <- E epochs of mini-batch SGD from w on client i
    delta = sum_i (n_i / sum n) (w - w_i),   w <- ServerOptimizer(w, delta)

Phase one of ZOWarmUp (the warm-up) is this with ``tiers = "high"``; alone it is the paper's
"High Res Only". Running statistics of BatchNorm travel with the delta and are averaged with the
same weights, unscaled by the server's learning rate, as in the author's public code.

Source: McMahan et al. 2017; Reddi et al. 2021; ZOWarmUp, Algorithm 1, phase 1.
"""

from typing import Any

import numpy as np

from zo_fl.clients.first_order import LocalTraining, local_sgd, sgd
from zo_fl.core import server_optimizers
from zo_fl.core.phase import Phase, Problem, make_group, make_phase
from zo_fl.core.types import Aggregation, Group

# Running statistics of BatchNorm: the mean of the clients', unscaled by the server's step size.
AGGREGATION = Aggregation(finalize_state=lambda model_state, mean_state: mean_state)


def phases(problem: Problem, *, warmup: dict) -> tuple[Phase, ...]:
    """Returns the one phase of FedAvg; ``warmup`` is the config block of ``phase``."""
    return (phase(problem, **warmup),)


def phases_for_all(problem: Problem, *, warmup: dict, zo: dict) -> tuple[Phase, ...]:
    """Returns FedAvg by all clients, for as many rounds as ``zo`` has: a control.

    As second phase it is the upper bound of any method in which low-resource clients cannot
    back-propagate; the other fields are the warm-up's.
    """
    changes = {"tiers": "all", "cohort_size": zo["cohort_size"], "num_rounds": zo["num_rounds"]}
    return (phase(problem, name="fedavg_all", **(warmup | changes)),)


def phase(
    problem: Problem,
    *,
    name: str = "warmup",
    num_rounds: int,
    server_lr: float,
    server: dict,
    **clients: Any,
) -> Phase:
    """Returns a phase of FedAvg; the arguments are the fields of ``config.warmup``.

    Args:
      problem: task and clients.
      name: the phase's.
      num_rounds: rounds.
      server_lr: step size along the mean delta.
      server: server optimizer, see ``server_optimizers.create``.
      **clients: the other fields of the block, see ``first_order_clients``.

    Raises:
      ConfigError: a number out of range or an unknown name.
    """
    optimizer = server_optimizers.create(lr=server_lr, **server)
    group = first_order_clients(problem, **clients)
    return make_phase(problem, name, num_rounds, (group,), optimizer, AGGREGATION)


def first_order_clients(
    problem: Problem,
    *,
    cohort_size: int,
    tiers: str,
    participation: str,
    local_epochs: int,
    batch_size: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    augment: bool,
    precision: str,
) -> Group:
    """Returns the clients of a FedAvg round; the arguments are fields of ``config.warmup``."""
    training = LocalTraining(
        sgd(lr, momentum, weight_decay),
        local_epochs,
        batch_size,
        augment,
        has_ragged_clients(problem),
    )
    return make_group(
        problem,
        local_sgd(problem.task.with_precision(precision, "warmup.precision"), training),
        lambda clients, examples: clients * examples * local_epochs,
        block="warmup",
        tiers=tiers,
        cohort_size=cohort_size,
        participation=participation,
    )


def has_ragged_clients(problem: Problem) -> bool:
    """Returns whether clients have unequal numbers of examples."""
    sizes = np.asarray(problem.clients.client_sizes)
    return bool(sizes.min() < sizes.max())
