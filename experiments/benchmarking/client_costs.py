"""Table 1 of the paper for a config: bytes and memory of a client, by formula and as measured."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.table import Table

from zo_fl import experiment, models
from zo_fl.engine.phase import Phase
from zo_fl.engine.strategy import Group
from zo_fl.host import units
from zo_fl.host.traffic import cumulative, group_traffic, phase_traffic

from . import client_step

# As printed in Table 1, in MB per client; its communication columns are scrambled.
PAPER = {
    "warmup": {"uplink": "S K 4e-6", "downlink": "44.7", "memory": "533.2"},
    "zo": {"uplink": "S 4e-6", "downlink": "44.7", "memory": "89.4"},
}
PAPER_PARAMS = 11_173_962


def show(config: Mapping[str, Any], console: Console, is_timed: bool = False) -> None:
    """Prints both tables of a config.

    Args:
      config: a resolved one.
      console: where to.
      is_timed: run each client's step too, and time it.
    """
    built = experiment.build(config)
    params, model_state = jax.eval_shape(built.task.init, built.run_key)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    dataset = built.federation.dataset
    module = models.create(**config["model"], num_classes=dataset.num_classes)
    sizes = client_step.activations(module, dataset.train["image"].shape[1:])
    formulas = functools.partial(_reference, config, built, num_params, sizes)
    console.print(
        f"{config['model']['name']}, {num_params:,} parameters; activations of one image: "
        f"{sizes.total:,} floats, the largest {sizes.largest:,}"
    )
    table = _table()
    for phase in built.phases:
        for group in phase.groups:
            for row in _group_rows(built, phase, group, formulas(phase, group), is_timed):
                table.add_row(*row)
        table.add_section()
    console.print(table)
    console.print(_totals(built, params, model_state))
    console.print(
        "Table 1 scrambles its communication columns as printed; the formulas are A.3's, read "
        "consistently. Measured bytes include BatchNorm statistics that travel."
    )
    if num_params != PAPER_PARAMS:
        console.print(f"The paper's figures are for ResNet18 with {PAPER_PARAMS:,} parameters.")


def _table() -> Table:
    table = Table(title="A client in one round")
    table.add_column("phase")
    table.add_column("quantity")
    for name in ("paper, as printed", "formula", "measured"):
        table.add_column(name, justify="right")
    return table


class Reference(NamedTuple):
    """What A.3's formulas give for a client of a group, in bytes; None where they do not apply."""

    uplink: int | None
    downlink: int | None
    memory: int | None
    batch: str


def _reference(config, built, num_params: int, sizes, phase: Phase, group: Group) -> Reference:
    """Returns the formulas' values for the paper's own two phases; none for other methods."""
    model = 4 * num_params
    if phase.name == "warmup":
        batch = config["warmup"]["batch_size"]
        memory = client_step.memory_formula(num_params, batch, sizes.total)
        return Reference(model, model, memory, f", {batch} images at once")
    if phase.name == "zo":
        scalars = 4 * config["zo"]["num_directions"]
        batch = config["zo"]["microbatch"] or built.data.client_indices.shape[1]
        memory = client_step.memory_formula(num_params, batch, sizes.largest)
        return Reference(scalars, scalars * group.cohort_size, memory, f", {batch} images at once")
    return Reference(None, None, None, "")


def _group_rows(built, phase: Phase, group: Group, reference: Reference, is_timed: bool):
    """Yields the table's rows for one client of a group in one round."""
    params, model_state = jax.eval_shape(built.task.init, built.run_key)
    step_of = phase, group, params, model_state, built.data_of(phase), built.engine
    step = client_step.compile_step(*step_of)
    memory = client_step.step_memory(step, *step_of)
    traffic = group_traffic(group, phase, params, model_state, built.data_of(phase))
    name = f"{phase.name}, {group.name}" if group.name else phase.name
    replays = all(other.strategy.replays for other in phase.groups)
    yield from _rows(name, group, traffic, memory, reference, PAPER.get(phase.name, {}), replays)
    yield "", "the server reads", "", "", "sums" if phase.sums_suffice else "each message"
    if is_timed:
        params, model_state = built.task.init(built.run_key)
        seconds = client_step.step_seconds(step, phase, params, model_state, built.data_of(phase))
        yield "", "time here", "", "", f"{seconds:.3g} s"


def _rows(name: str, group: Group, traffic, memory, reference, paper: dict, replays: bool):
    """Returns uplink, downlink and memory of one client of a group in one round."""
    received = traffic.broadcast if replays else traffic.downlink // group.cohort_size
    measured = memory.arguments + memory.outputs + memory.temporaries
    lines = [
        ("uplink", "uplink", reference.uplink, traffic.uplink // group.cohort_size),
        ("downlink", "downlink", reference.downlink, received),
        (f"memory{reference.batch}", "memory", reference.memory, measured),
        ("  of it temporaries", "", None, memory.temporaries),
    ]
    return [
        (
            name if index == 0 else "",
            label,
            f"{paper[key]} MB" if key in paper else "",
            "" if formula is None else units.num_bytes(formula),
            units.num_bytes(value),
        )
        for index, (label, key, formula, value) in enumerate(lines)
    ]


def _totals(built, params, model_state) -> Table:
    table = Table(title="The whole run, all clients together")
    for name in (
        "phase",
        "rounds",
        "clients a round",
        "model pushed at start",
        "uplink",
        "downlink",
    ):
        table.add_column(name, justify="left" if name == "phase" else "right")
    for phase in built.phases:
        traffic = phase_traffic(phase, params, model_state, built.data_of(phase))
        uplink, downlink = cumulative(traffic, phase.num_rounds)
        table.add_row(
            phase.name,
            str(phase.num_rounds),
            str(phase.cohort_size),
            units.num_bytes(traffic.at_start),
            units.num_bytes(uplink),
            units.num_bytes(downlink),
        )
    return table
