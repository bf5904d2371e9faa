"""Federated learning in which every device takes part, also those that cannot back-propagate."""

__version__ = "0.1.0"
