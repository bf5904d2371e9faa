"""Timing, peers and the GPU campaign: run from the repository, in no wheel.

They may import ``experiments``, never the other way round.
"""

from experiments import startup

startup.begin(__name__)
