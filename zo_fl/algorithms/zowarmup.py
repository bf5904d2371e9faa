"""ZOWarmUp: first-order warm-up on the high-resource clients, then zeroth-order rounds on all.

    phase 1   FedAvg from a random start, high-resource clients only            ``fedavg``
    pivot     the warmed-up model is sent once to everyone
    phase 2   zeroth-order rounds, one step a round, every client               ``zo``

Source: Legate, Rish, Belilovsky, "Warming Up for Zeroth-Order Federated Pre-Training with Low
Resource Clients", PMLR 330 (arXiv 2509.03503), Algorithm 1.
"""

from collections.abc import Mapping
from typing import Any

from zo_fl.algorithms import fedavg
from zo_fl.algorithms import zo as zeroth_order
from zo_fl.core.errors import in_block
from zo_fl.core.phase import Phase, Problem


def phases(
    problem: Problem, *, warmup: Mapping[str, Any], zo: Mapping[str, Any]
) -> tuple[Phase, ...]:
    """Returns the two phases; the arguments are their config blocks."""
    with in_block("warmup"):
        first = fedavg.phase(problem, "warmup", warmup)
    return (first, zeroth_order.phase(problem, "zo", zo))
