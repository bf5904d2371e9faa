"""Table 1 of the paper for a config: bytes and memory of a client, by formula and as measured."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.table import Table

from zo_fl import config as configs
from zo_fl import experiment
from zo_fl.engine.algorithm import Group, Phase
from zo_fl.experiment import Experiment
from zo_fl.host import units
from zo_fl.host.costs import group_traffic, phase_cost

from . import client_step

# As printed in Table 1, in MB per client; its communication columns are scrambled.
PAPER = {
    "warmup": {"uplink": "S K 4e-6 MB", "downlink": "44.7 MB", "memory": "533.2 MB"},
    "zo": {"uplink": "S 4e-6 MB", "downlink": "44.7 MB", "memory": "89.4 MB"},
}
PAPER_PARAMS = 11_173_962

Shapes = tuple[Any, Any]  # of the parameters and of the model's state


class Formulas(NamedTuple):
    """A.3's formulas for a client of a group, in bytes; None where they do not apply."""

    uplink: int | None = None
    downlink: int | None = None
    memory: int | None = None
    batch: str = ""


def show(config: Mapping[str, Any], console: Console, is_timed: bool = False) -> None:
    """Prints both tables of a resolved config; ``is_timed``: run each client's step too."""
    built = experiment.build(config)
    shapes = jax.eval_shape(built.task.init, built.run_key)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(shapes[0]))
    dataset = built.federation.dataset
    sizes = client_step.activations(built.task.module, dataset.train["image"].shape[1:])
    console.print(
        f"{config['model']['name']}, {num_params:,} parameters; activations of one image: "
        f"{sizes.total:,} floats, the largest {sizes.largest:,}"
    )
    names = ("phase", "quantity", "paper, as printed", "formula", "measured")
    table = _table("A client in one round", names, 2)
    for phase in built.phases:
        for group in phase.groups:
            formulas = _formulas(config, built, num_params, sizes, phase, group)
            for row in _group_rows(built, shapes, phase, group, formulas, is_timed):
                table.add_row(*row)
        table.add_section()
    console.print(table)
    console.print(_totals(built, shapes))
    console.print(
        "Table 1 scrambles its communication columns as printed; the formulas are A.3's, read "
        "consistently. Measured bytes include BatchNorm statistics that travel."
    )
    if num_params != PAPER_PARAMS:
        console.print(f"The paper's figures are for ResNet18 with {PAPER_PARAMS:,} parameters.")


def _formulas(
    config: Mapping[str, Any], built: Experiment, num_params: int, sizes, phase: Phase, group: Group
) -> Formulas:
    """Returns the formulas' values for the paper's own two phases, none for other methods."""
    if phase.name == "warmup":
        batch, floats = config["warmup"]["batch_size"], sizes.total
        sent = received = 4 * num_params
    elif phase.name == "zo":
        batch = configs.plain(config)["zo"]["microbatch"] or built.data.client_indices.shape[1]
        floats, sent = sizes.largest, 4 * config["zo"]["num_directions"]
        received = sent * group.cohort_size
    else:
        return Formulas()
    memory = client_step.memory_formula(num_params, batch, floats)
    return Formulas(sent, received, memory, f", {batch} images at once")


def _group_rows(
    built: Experiment,
    shapes: Shapes,
    phase: Phase,
    group: Group,
    formulas: Formulas,
    is_timed: bool,
) -> Iterator[tuple[str, ...]]:
    """Yields the table's rows for one client of a group in one round."""
    data = built.data_of(phase)
    step_of = phase, group, *shapes, data, built.engine
    step = client_step.compile_step(*step_of)
    memory = client_step.step_memory(step, *step_of)
    traffic = group_traffic(group, phase, *shapes, data)
    received = traffic.broadcast if phase.replays else traffic.received
    name, paper = ", ".join(filter(None, (phase.name, group.name))), PAPER.get(phase.name, {})
    lines = (
        ("uplink", "uplink", formulas.uplink, traffic.uplink // group.cohort_size),
        ("downlink", "downlink", formulas.downlink, received),
        (f"memory{formulas.batch}", "memory", formulas.memory, sum(memory)),
        ("  of it temporaries", "", None, memory.temporaries),
    )
    for i, (label, key, formula, measured) in enumerate(lines):
        by_formula = "" if formula is None else units.num_bytes(formula)
        yield "" if i else name, label, paper.get(key, ""), by_formula, units.num_bytes(measured)
    yield "", "the server reads", "", "", "sums" if phase.sums_suffice else "each message"
    if is_timed:
        params, model_state = built.task.init(built.run_key)
        seconds = client_step.step_seconds(step, phase, params, model_state, data)
        yield "", "time here", "", "", f"{seconds:.3g} s"


def _totals(built: Experiment, shapes: Shapes) -> Table:
    names = ("phase", "rounds", "clients a round", "model pushed at start", "uplink", "downlink")
    table = _table("The whole run, all clients together", names, 1)
    for phase in built.phases:
        cost, rounds = phase_cost(phase, *shapes, built.data_of(phase)), phase.num_rounds
        downlink = cost.at_start + cost.downlink * rounds if rounds else 0
        sizes = cost.at_start, cost.uplink * rounds, downlink
        counts = str(rounds), str(phase.cohort_size)
        table.add_row(phase.name, *counts, *map(units.num_bytes, sizes))
    return table


def _table(title: str, names: tuple[str, ...], num_texts: int) -> Table:
    table = Table(title=title)
    for i, name in enumerate(names):
        table.add_column(name, justify="left" if i < num_texts else "right")
    return table
