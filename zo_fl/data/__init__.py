"""Data sets as arrays on the host, and their partition over clients.

``federated.load`` is the way in. It calls ``datasets.load`` and then ``partition``.
"""
