"""The parts of ``experiments.benchmark``: what is timed, how, and against whom."""
