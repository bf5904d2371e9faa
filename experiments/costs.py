"""Prints Table 1 of the paper for any config: what a client sends, receives and holds in memory.

    python -m experiments.costs --config=configs/cifar10_10_90.py

Beside the paper's figures stand its formulas, evaluated for this model, and what was measured:
bytes from the shapes of the real messages, memory from the compiled client step. Exit status 2 for
bad input.
"""

import jax
from absl import app
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from experiments import cli
from zo_fl import cost, experiment, models, units

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, e.g. configs/quickstart.py."
)

# As printed in Table 1, in MB per client; its communication columns are scrambled (see cost.py).
PAPER = {
    "warmup": {"uplink": "S K 4e-6", "downlink": "44.7", "memory": "533.2"},
    "zo": {"uplink": "S 4e-6", "downlink": "44.7", "memory": "89.4"},
}
PAPER_PARAMS = 11_173_962


def main(argv: list[str]) -> int:
    """Prints the tables of the flags' config and returns the exit status."""
    cli.reject_positional(argv)
    config = cli.resolved_config(_CONFIG.value)
    cli.enable_compilation_cache()
    built = experiment.build(config)
    params, model_state = jax.eval_shape(built.task.init, built.run_key)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    dataset = built.federation.dataset
    module = models.create(**config["model"], num_classes=dataset.num_classes)
    sizes = cost.activations(module, dataset.train_images.shape[1:])
    console = Console(width=100, highlight=False)
    console.print(
        f"{config['model']['name']}, {num_params:,} parameters; activations of one image: "
        f"{sizes.total:,} floats, the largest {sizes.largest:,}"
    )
    table = _table()
    for phase in built.phases:
        traffic = cost.phase_traffic(phase, params, model_state, built.data)
        memory = cost.step_memory(phase, phase.groups[0], params, model_state, built.data)
        for row in _rows(config, built, phase, traffic, memory, num_params, sizes):
            table.add_row(*row)
        table.add_section()
    console.print(table)
    console.print(_totals(built, params, model_state))
    console.print(
        "Table 1 scrambles its communication columns as printed; the formulas are A.3's, read "
        "consistently (zo_fl/cost.py). Measured bytes include BatchNorm statistics that travel."
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


def _rows(config, built, phase, traffic, memory, num_params: int, sizes) -> list[tuple[str, ...]]:
    """Returns uplink, downlink and memory of one client in one round of a phase."""
    population = built.federation.clients.client_sizes.shape[0]
    model = 4 * num_params
    if phase.groups[0].strategy.replays:
        scalars = 4 * config["zo"]["num_directions"]
        up, down, receivers = scalars, scalars * phase.cohort_size, population
        batch = config["zo"]["microbatch"] or built.data.client_indices.shape[1]
        bytes_ = cost.memory_formula(num_params, batch, sizes.largest)
    else:
        up, down, receivers = model, model, phase.cohort_size
        batch = config["warmup"]["batch_size"]
        bytes_ = cost.memory_formula(num_params, batch, sizes.total)
    paper = {k: f"{v} MB" for k, v in PAPER.get(phase.name, {}).items()}
    measured = memory.arguments + memory.outputs + memory.temporaries
    return [
        (
            phase.name,
            "uplink",
            paper.get("uplink", ""),
            units.num_bytes(up),
            units.num_bytes(traffic.uplink // phase.cohort_size),
        ),
        (
            "",
            "downlink",
            paper.get("downlink", ""),
            units.num_bytes(down),
            units.num_bytes(traffic.downlink // receivers),
        ),
        (
            "",
            f"memory, {batch} images at once",
            paper.get("memory", ""),
            units.num_bytes(bytes_),
            units.num_bytes(measured),
        ),
        ("", "  of it temporaries", "", "", units.num_bytes(memory.temporaries)),
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
        traffic = cost.phase_traffic(phase, params, model_state, built.data)
        uplink, downlink = cost.cumulative(traffic, phase.num_rounds)
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
    app.run(cli.one_line_errors(main), flags_parser=cli.parse_flags)
