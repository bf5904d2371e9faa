"""Data sets as arrays, and their partition over clients: once, on the host, in NumPy.

``datasets.load`` -> ``partition`` -> ``federated.load``; what then runs inside ``jit`` is in
``core``: ``cohorts`` (who takes part, and their examples) and ``augment``.
"""
