"""All methods by name. Adding one takes a file in its family and a line in ``METHODS``.

Names joined by ``+`` run one after the other: ``fedavg+fedkseed`` warms up by first-order rounds
and goes on by FedKSeed. ``zowarmup`` is ``fedavg+zo``: first-order warm-up on the high-resource
clients from a random start; at the pivot everyone is sent the model once; then zeroth-order rounds
with all clients.

Source of ZOWarmUp: Legate, Rish, Belilovsky, "Warming Up for Zeroth-Order Federated Pre-Training
with Low Resource Clients", PMLR 330 (arXiv 2509.03503), Algorithm 1.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from zo_fl.engine.algorithm import Phase, Problem
from zo_fl.engine.fields import Block, in_block
from zo_fl.heads import gaussian_head, head_sgd, head_zo, patches, ridge, ridge_cg
from zo_fl.sgd import fedavg, heterofl, mixed_tiers
from zo_fl.zo import baffle, fedkseed, fedzo
from zo_fl.zo import methods as zo

Config = Mapping[str, Any]


def always(config: Config) -> bool:
    """Returns True, for methods whose shorter run is always the start of a longer one."""
    return True


def never(config: Config) -> bool:
    """Returns False, for methods that end by choosing: more rounds would come too late."""
    return False


class Method(NamedTuple):
    """A method's declaration.

    Attributes:
      phases: ``(problem, **blocks) -> phases``.
      reads: the config blocks that ``phases`` takes; the last has the method's number of rounds.
      blocks: declarations of the blocks that the method's file brings along.
      extendable: ``config -> bool``, whether a run of it is the start of a longer one.
      alone: ``config -> bool``, whether a run of it cannot be one program with others: it ends by
        itself, or keeps features.
    """

    phases: Callable[..., tuple[Phase, ...]]
    reads: tuple[str, ...]
    blocks: Mapping[str, Block] = {}  # read only
    extendable: Callable[[Config], bool] = always
    alone: Callable[[Config], bool] = never

    @property
    def rounds(self) -> str:
        """The dotted field with the method's number of rounds."""
        return f"{self.reads[-1]}.num_rounds"


METHODS: dict[str, Method] = {
    "fedavg": Method(
        fedavg.phases,
        ("warmup",),
        fedavg.BLOCKS,
        extendable=lambda config: config["warmup"]["stop"] == "fixed",
        alone=lambda config: config["warmup"]["stop"] != "fixed",
    ),
    "fedavg_all": Method(fedavg.phases_for_all, ("warmup", "zo")),
    "heterofl": Method(heterofl.phases, ("heterofl",), heterofl.BLOCKS),
    "zo": Method(zo.phases, ("zo",), zo.BLOCKS),
    "decomfl": Method(zo.phases_decomfl, ("zo", "decomfl")),
    "mezo": Method(zo.phases_mezo, ("zo", "mezo")),
    "fedkseed": Method(fedkseed.phases, ("zo", "fedkseed"), fedkseed.BLOCKS),
    "fedkseed_pro": Method(fedkseed.phases_pro, ("zo", "fedkseed")),
    "fedzo": Method(fedzo.phases, ("zo", "fedzo"), fedzo.BLOCKS),
    "baffle": Method(baffle.phases, ("zo", "baffle"), baffle.BLOCKS),
    "mixed_tiers": Method(mixed_tiers.phases, ("warmup", "zo")),
    "patches": Method(patches.phases, ("patches",), patches.BLOCKS, extendable=never),
    "gaussian_head": Method(
        gaussian_head.phases, ("gaussian_head",), gaussian_head.BLOCKS, extendable=never
    ),
    "ridge": Method(ridge.phases, ("ridge",), ridge.BLOCKS, extendable=never),
    "ridge_cg": Method(
        ridge_cg.phases,
        ("ridge_cg",),
        ridge_cg.BLOCKS,
        extendable=never,
        alone=lambda config: (
            config["ridge_cg"]["check_every"] != "none" or config["ridge_cg"]["cache"]
        ),
    ),
    "head_sgd": Method(
        head_sgd.phases,
        ("head_sgd",),
        head_sgd.BLOCKS,
        alone=lambda config: config["head_sgd"]["cache"],
    ),
    "head_zo": Method(
        head_zo.phases,
        ("head_zo",),
        head_zo.BLOCKS,
        alone=lambda config: config["head_zo"]["cache"],
    ),
}
ALIASES = {"zowarmup": "fedavg+zo"}


def names() -> set[str]:
    """Returns the names of all methods."""
    return {*METHODS, *ALIASES}


def parts(name: str) -> list[str]:
    """Returns the keys of ``METHODS`` that a name stands for, in the order that they run."""
    return "+".join(ALIASES.get(part, part) for part in name.split("+")).split("+")


def blocks() -> dict[str, Block]:
    """Returns the declarations of all methods' own config blocks."""
    return {name: block for method in METHODS.values() for name, block in method.blocks.items()}


def create(name: str, problem: Problem, config: Config) -> tuple[Phase, ...]:
    """Returns the phases of a method, or of several joined by ``+``, by a resolved config.

    Raises:
      ConfigError: a value that does not go with the clients that there are.
    """
    phases = []
    for part in parts(name):
        method = METHODS[part]
        read = {block: config[block] for block in method.reads}
        with in_block(read):
            phases += method.phases(problem, **read)
    return tuple(phases)
