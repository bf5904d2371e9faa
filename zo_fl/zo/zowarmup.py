"""ZOWarmUp: first-order warm-up on the high-resource clients, then zeroth-order rounds on all.

    phase 1   FedAvg from a random start, high-resource clients only            ``fedavg``
    pivot     the warmed-up model is sent once to everyone
    phase 2   zeroth-order rounds, one step a round, every client               ``zo``

Source: Legate, Rish, Belilovsky, "Warming Up for Zeroth-Order Federated Pre-Training with Low
Resource Clients", PMLR 330 (arXiv 2509.03503), Algorithm 1.
"""

PARTS = "fedavg+zo"
