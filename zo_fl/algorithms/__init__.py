"""Federated algorithms by name. Each is one file that exports ``phases(problem, **blocks)``.

The keyword arguments of ``phases`` are named after the config blocks that the algorithm reads:
adding one takes a file here, a line in ``ALGORITHMS`` and a block in ``configs/base.py``.
"""

import inspect
from collections.abc import Callable, Mapping

from zo_fl.algorithms import fedavg, zo, zowarmup
from zo_fl.errors import ConfigError
from zo_fl.phase import Phase, Problem

ALGORITHMS: dict[str, Callable[..., tuple[Phase, ...]]] = {
    "fedavg": fedavg.phases,
    "zo": zo.phases,
    "zowarmup": zowarmup.phases,
}


def create(name: str, problem: Problem, blocks: Mapping[str, dict]) -> tuple[Phase, ...]:
    """Returns the phases of algorithm ``name``, given the config's blocks by name.

    Raises:
      ConfigError: unknown name, or a bad value in a block.
    """
    if name not in ALGORITHMS:
        raise ConfigError(
            f"unknown algorithm {name!r}; allowed: {', '.join(sorted(ALGORITHMS))}; "
            "change config.algorithm"
        )
    phases = ALGORITHMS[name]
    wanted = list(inspect.signature(phases).parameters)[1:]
    return phases(problem, **{block: blocks[block] for block in wanted})
