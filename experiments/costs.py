"""Prints Table 1 of the paper for any config: what a client sends, receives and holds in memory.

    python -m experiments.costs --config=configs/cifar10_10_90.py

Beside the paper's figures stand its formulas, evaluated for this model, and what was measured:
bytes from the shapes of the real messages, memory from the compiled client step, with ``--time``
its time. Where the server reads only sums of what clients send, secure aggregation can hide the
single messages. Exit status 2 for bad input.
"""

from typing import NamedTuple

import jax
from absl import flags
from rich.console import Console
from rich.table import Table

from zo_fl import experiment, models
from zo_fl.core.phase import Phase
from zo_fl.core.strategy import Group
from zo_fl.host import units
from zo_fl.host.traffic import cumulative, group_traffic, phase_traffic

from . import cli
from .benchmarking import client_step

cli.define_config()
_TIME = flags.DEFINE_bool("time", False, "Also run each client's step, four times, and time it.")

# As printed in Table 1, in MB per client; its communication columns are scrambled.
PAPER = {
    "warmup": {"uplink": "S K 4e-6", "downlink": "44.7", "memory": "533.2"},
    "zo": {"uplink": "S 4e-6", "downlink": "44.7", "memory": "89.4"},
}
PAPER_PARAMS = 11_173_962


def main(argv: list[str]) -> int:
    """Prints the tables of the flags' config and returns the exit status."""
    del argv
    config = cli.resolved_config()
    cli.enable_compilation_cache()
    built = experiment.build(config)
    params, model_state = jax.eval_shape(built.task.init, built.run_key)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    dataset = built.federation.dataset
    module = models.create(**config["model"], num_classes=dataset.num_classes)
    sizes = client_step.activations(module, dataset.train["image"].shape[1:])
    console = Console(width=100, highlight=False)
    console.print(
        f"{config['model']['name']}, {num_params:,} parameters; activations of one image: "
        f"{sizes.total:,} floats, the largest {sizes.largest:,}"
    )
    table = _table()
    for phase in built.phases:
        for group in phase.groups:
            for row in _group_rows(config, built, phase, group, num_params, sizes):
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
    return 0


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


def _reference(config, built, phase: Phase, group: Group, num_params: int, sizes) -> Reference:
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


def _group_rows(config, built, phase: Phase, group: Group, num_params: int, sizes):
    """Yields the table's rows for one client of a group in one round."""
    params, model_state = jax.eval_shape(built.task.init, built.run_key)
    step_of = phase, group, params, model_state, built.data_of(phase), built.engine
    step = client_step.compile_step(*step_of)
    memory = client_step.step_memory(step, *step_of)
    traffic = group_traffic(group, phase, params, model_state, built.data_of(phase))
    reference = _reference(config, built, phase, group, num_params, sizes)
    name = f"{phase.name}, {group.name}" if group.name else phase.name
    replays = all(other.strategy.replays for other in phase.groups)
    yield from _rows(name, group, traffic, memory, reference, PAPER.get(phase.name, {}), replays)
    yield "", "the server reads", "", "", "sums" if phase.sums_suffice else "each message"
    if _TIME.value:
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


if __name__ == "__main__":
    cli.run(main)
