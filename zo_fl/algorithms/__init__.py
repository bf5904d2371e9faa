"""Federated algorithms by name. Each is one file that exports ``phases(problem, **blocks)``.

The keyword arguments of ``phases`` are named after the config blocks that the algorithm reads:
adding one takes a file here, a line in ``ALGORITHMS`` and a block in ``configs/base.py``. Names
joined by ``+`` are run one after the other: ``fedavg+fedkseed`` warms up by first-order rounds and
goes on by FedKSeed. ``zowarmup`` is ``fedavg+zo``.
"""

import inspect
from collections.abc import Callable, Mapping

from zo_fl.algorithms import (
    baffle,
    decomfl,
    fedavg,
    fedkseed,
    fedzo,
    heterofl,
    mezo,
    mixed_tiers,
    zo,
    zowarmup,
)
from zo_fl.core.errors import ConfigError, in_block
from zo_fl.core.phase import Phase, Problem

ALGORITHMS: dict[str, Callable[..., tuple[Phase, ...]]] = {
    "baffle": baffle.phases,
    "decomfl": decomfl.phases,
    "fedavg": fedavg.phases,
    "fedavg_all": fedavg.phases_for_all,
    "fedkseed": fedkseed.phases,
    "fedkseed_pro": fedkseed.phases_pro,
    "fedzo": fedzo.phases,
    "heterofl": heterofl.phases,
    "mezo": mezo.phases,
    "mixed_tiers": mixed_tiers.phases,
    "zo": zo.phases,
    "zowarmup": zowarmup.phases,
}


def blocks_of(part: str) -> list[str]:
    """Returns the names of the config blocks that an algorithm of ``ALGORITHMS`` reads."""
    return list(inspect.signature(ALGORITHMS[part]).parameters)[1:]


def create(name: str, problem: Problem, blocks: Mapping[str, dict]) -> tuple[Phase, ...]:
    """Returns the phases of an algorithm, given the config's blocks by name.

    Args:
      name: of ``ALGORITHMS``, or several joined by ``+``.
      problem: task and clients.
      blocks: the config.

    Raises:
      ConfigError: unknown name, or a bad value in a block.
    """
    phases = []
    for part in name.split("+"):
        if part not in ALGORITHMS:
            raise ConfigError(
                f"unknown algorithm {part!r}; allowed: {', '.join(sorted(ALGORITHMS))}, or several "
                "joined by +; change config.algorithm"
            )
        wanted = blocks_of(part)
        # A bad value is looked for in the last of them: the others are set by it, where they are.
        with in_block(wanted[-1]):
            phases += ALGORITHMS[part](problem, **{block: blocks[block] for block in wanted})
    return tuple(phases)
