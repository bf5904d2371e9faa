"""Zeroth-order estimation: random directions, and estimators that turn losses into scalars."""
