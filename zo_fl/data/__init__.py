"""Data: named data sets as arrays, their partition over clients, and the pure functions of a round.

``datasets.load`` -> ``partition`` -> ``federated.load`` run once on the host, in NumPy;
``sampling``, ``federated.gather``, ``batches`` and ``augment`` run inside ``jit``.
"""
