"""Federated algorithms by name. Each is one file that exports ``phases(problem, **blocks)``.

The keyword arguments of ``phases`` are named after the config blocks that the algorithm reads; a
block of its own is declared in the file's ``BLOCKS``. Adding an algorithm takes a file here and a
line in ``ALGORITHMS``. Names joined by ``+`` are run one after the other: ``fedavg+fedkseed`` warms
up by first-order rounds and goes on by FedKSeed. ``zowarmup`` is ``fedavg+zo``.
"""

import inspect
import sys
from collections.abc import Callable, Mapping

from zo_fl.engine.errors import in_block
from zo_fl.engine.fields import Block
from zo_fl.engine.phase import Phase, Problem
from zo_fl.heads import gaussian_head, head_sgd, head_zo, patches, ridge, ridge_cg
from zo_fl.sgd import fedavg, heterofl, mixed_tiers
from zo_fl.zo import baffle, decomfl, fedkseed, fedzo, mezo, zowarmup
from zo_fl.zo import methods as zo

ALGORITHMS: dict[str, Callable[..., tuple[Phase, ...]]] = {
    "baffle": baffle.phases,
    "decomfl": decomfl.phases,
    "fedavg": fedavg.phases,
    "fedavg_all": fedavg.phases_for_all,
    "fedkseed": fedkseed.phases,
    "fedkseed_pro": fedkseed.phases_pro,
    "fedzo": fedzo.phases,
    "gaussian_head": gaussian_head.phases,
    "head_sgd": head_sgd.phases,
    "head_zo": head_zo.phases,
    "heterofl": heterofl.phases,
    "mezo": mezo.phases,
    "mixed_tiers": mixed_tiers.phases,
    "patches": patches.phases,
    "ridge": ridge.phases,
    "ridge_cg": ridge_cg.phases,
    "zo": zo.phases,
}
ALIASES = {"zowarmup": zowarmup.PARTS}


def names() -> set[str]:
    """Returns the names of all algorithms."""
    return {*ALGORITHMS, *ALIASES}


def parts(name: str) -> list[str]:
    """Returns the keys of ``ALGORITHMS`` that a name stands for, in the order that they run."""
    return "+".join(ALIASES.get(part, part) for part in name.split("+")).split("+")


def blocks_of(part: str) -> list[str]:
    """Returns the names of the config blocks that an algorithm of ``ALGORITHMS`` reads.

    The last is the one with its number of rounds.
    """
    return list(inspect.signature(ALGORITHMS[part]).parameters)[1:]


def is_extendable(part: str, config: Mapping[str, Mapping]) -> bool:
    """Returns whether a run of an algorithm of ``ALGORITHMS`` is the start of a longer one.

    Not where a file says so (``ENDS_BY_CHOOSING``), or where it may end by itself.
    """
    if config[blocks_of(part)[-1]].get("stop", "fixed") != "fixed":
        return False
    return not getattr(sys.modules[ALGORITHMS[part].__module__], "ENDS_BY_CHOOSING", False)


def blocks() -> dict[str, Block]:
    """Returns the declarations of all algorithms' own config blocks."""
    found: dict[str, Block] = {}
    for phases in ALGORITHMS.values():
        found |= getattr(sys.modules[phases.__module__], "BLOCKS", {})
    return found


def create(name: str, problem: Problem, config: Mapping[str, Mapping]) -> tuple[Phase, ...]:
    """Returns the phases of an algorithm.

    Args:
      name: of ``ALGORITHMS`` or ``ALIASES``, or several joined by ``+``.
      problem: task and clients.
      config: resolved; has the blocks that the algorithm reads.

    Raises:
      ConfigError: a value that does not go with the clients that there are.
    """
    phases = []
    for part in parts(name):
        wanted = blocks_of(part)
        # A value that does not fit is in the last of them: the others are set by it, where they are
        # about the same.
        with in_block(wanted[-1]):
            phases += ALGORITHMS[part](problem, **{block: config[block] for block in wanted})
    return tuple(phases)
