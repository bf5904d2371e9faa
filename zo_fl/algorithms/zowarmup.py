"""ZOWarmUp: first-order warm-up on the high-resource clients, then zeroth-order rounds on all.

    phase 1   FedAvg from a random start, high-resource clients only            ``fedavg``
    pivot     the warmed-up model is sent once to everyone
    phase 2   zeroth-order rounds, one step a round, every client               ``zo``

Source: Legate, Rish, Belilovsky, "Warming Up for Zeroth-Order Federated Pre-Training with Low
Resource Clients", PMLR 330 (arXiv 2509.03503), Algorithm 1.
"""

from zo_fl.algorithms import fedavg
from zo_fl.algorithms import zo as zo_rounds
from zo_fl.core.phase import Phase, Problem


def phases(problem: Problem, *, warmup: dict, zo: dict) -> tuple[Phase, ...]:
    """Returns the two phases; the arguments are the config blocks of the phases' own functions."""
    return (fedavg.phase(problem, **warmup), zo_rounds.phase(problem, **zo))
