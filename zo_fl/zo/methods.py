"""The zeroth-order round, and the methods that are settings of it.

    scalar_{j,m} = F_j(w + eps z_{j,m}) - F_j(w - eps z_{j,m}),    z_{j,m} = z(round, client j, m)
    g = sum_j (n_j / sum n) 1/S sum_m scalar_{j,m} / (2 eps) z_{j,m},    w <- ServerOptimizer(w, g)

F_j is the mean cross-entropy over *all* of the client's training examples; one step a round. Phase
two of ZOWarmUp is ``zo`` with all clients; alone it is zeroth-order training from scratch. With
``local_steps = k`` (Table 3) a client's examples are shuffled and split into k chunks of equal
size; it takes a step of its own after each, and g sums the k gradients of each client.

    decomfl   shared directions, uniform weights, local steps on mini-batches: the server needs the
              mean of the scalars alone, and a client that was away replays the rounds it missed.
              Without the source's local momentum and schedule of the number of directions.
    mezo      one client a round, one direction, one mini-batch. w +- eps z come from the same w,
              where the source adds and subtracts in place and drifts.

The config block of each has the fields that its source sets to other values; it reads all others
from ``zo``.

Sources: ZOWarmUp (arXiv 2509.03503), Algorithm 1, phase 2, with the printed errors mended: the
update is subtracted, all clients update, and terms are averaged. DeComFL, Li et al., ICLR 2025
(arXiv 2405.15861). MeZO, Malladi et al., NeurIPS 2023 (arXiv 2305.17333).
"""

from collections.abc import Mapping
from typing import Any

from zo_fl.engine import cohorts, server
from zo_fl.engine.algorithm import Group, Phase, Problem
from zo_fl.engine.fields import Block, Field, changed
from zo_fl.zo import client
from zo_fl.zo.client import Probing

FIELDS: Block = {
    "num_rounds": Field(300, "rounds", at_least=0),
    **cohorts.FIELDS,
    "seed_policy": Field(
        "per_client", "directions of each client's own, or shared", ("per_client", "shared")
    ),
    **client.FIELDS,
    "lr": Field(2e-4, "rate of a round: the server's times the clients'", at_least=0, varies=True),
    "local_lr": Field(0.0, "rate of a client's own steps; lr: that of a round", above=0, zero="lr"),
    "server": server.FIELD,
}


def own_fields(**defaults: Any) -> Block:
    """Returns the declarations of some fields of ``zo``, with other defaults."""
    return changed({name: FIELDS[name] for name in defaults}, **defaults)


BLOCKS: dict[str, Block] = {
    "zo": FIELDS,
    "decomfl": own_fields(
        num_rounds=500, eps=1e-3, num_directions=5, local_steps=4, batch_size=64, lr=1e-5
    ),
    "mezo": own_fields(num_rounds=500, eps=1e-3, batch_size=64, lr=1e-5),
}
DECOMFL = {"distribution": "gaussian", "tau": 1.0, "seed_policy": "shared"}
MEZO = {
    "distribution": "gaussian",
    "tau": 1.0,
    **cohorts.EVERYONE,
    "cohort_size": 1,
    "seed_policy": "per_client",
    "num_directions": 1,
    "local_steps": 1,
    "local_lr": 0.0,
}


def phases(problem: Problem, *, zo: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Returns the one phase of zeroth-order rounds; ``zo`` is its config block."""
    return (phase(problem, "zo", zo),)


def phases_decomfl(
    problem: Problem, *, zo: Mapping[str, Any], decomfl: Mapping[str, Any]
) -> tuple[Phase, ...]:
    """Returns the one phase of DeComFL."""
    return (phase(problem, "decomfl", {**zo, **decomfl, **DECOMFL}, uniform=True),)


def phases_mezo(
    problem: Problem, *, zo: Mapping[str, Any], mezo: Mapping[str, Any]
) -> tuple[Phase, ...]:
    """Returns the one phase of MeZO."""
    return (phase(problem, "mezo", {**zo, **mezo, **MEZO}),)


def phase(problem: Problem, name: str, block: Mapping[str, Any], uniform: bool = False) -> Phase:
    """Returns a phase of zeroth-order rounds; ``block`` has ``FIELDS``.

    With ``uniform`` clients count the same, whatever their number of examples.

    Raises:
      FieldError: a cohort that cannot be drawn, or noise that cannot hide an example.
    """
    group, probing = clients(problem, block, uniform)
    optimizer = server.optimizer(block["server"], block["lr"])
    shared = block["seed_policy"] == "shared"
    descending = client.scalar_server(probing, shared, optimizer)
    return Phase(name, block["num_rounds"], (group,), descending)


def clients(
    problem: Problem, block: Mapping[str, Any], uniform: bool = False
) -> tuple[Group, Probing]:
    """Returns the clients of a zeroth-order round, and how they probe; see ``phase``."""
    local_lr = block["local_lr"] or block["lr"]
    probing = client.make_probing(problem, block, local_lr, uniform)
    sending = client.scalar_client(probing, block["seed_policy"] == "shared")
    return client.make_group(problem, probing, sending, block), probing
