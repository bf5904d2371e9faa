"""Prints what one client's step holds in memory, against the paper's formulas.

See docs/results/notes_on_performance.

    python -m benchmarks.memory [--batches=1,64,900] [--model=resnet18] [--norm=batch]

For each number of images at once: FedAvg's step, the same with the gradient of a batch of 64 added
up over as many as are held at once, the zeroth-order step with running statistics ("frozen") and
with the batch's ("batch_sync"), that by forward-mode differentiation ("jvp": activations travel in
pairs), and that of ridge, which the formula does not know: it has no second model, but a Gram
matrix. Measured is what the compiler reserves: weights, images, message
and temporaries at their peak; on a device with an allocator of its own (a GPU), ``--run`` also runs
each step and prints the allocator's peak, over all steps so far.
"""

from typing import Any

import jax
from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import cli
from experiments.inspection import client_step
from zo_fl import models
from zo_fl.engine import cohorts, keys, trees
from zo_fl.engine.algorithm import start
from zo_fl.host import units

from . import workloads
from .workloads import Workload

IMAGES = 900  # of the client, all in the device's memory
BATCH = 64  # whose gradient is one step of FedAvg


def _steps(model: dict[str, Any], batch: int):
    """Yields ``(label, floats of the formula, workload)``."""
    module = models.create(**model, num_classes=workloads.NUM_CLASSES)
    sizes = client_step.activations(module, workloads.IMAGE_SHAPE)
    training = {"tiers": "all", "augment": False, "local_epochs": 1, "batch_size": batch}
    yield "FedAvg", sizes.total, Workload("", "", "fedavg", model, 1, IMAGES, training)
    if batch < BATCH and model["norm"] != "batch":
        added = training | {"batch_size": BATCH, "microbatch": batch}
        label = f"FedAvg, {BATCH} added up"
        yield label, sizes.total, Workload("", "", "fedavg", model, 1, IMAGES, added)
    policies = ("frozen", "batch_sync") if model["norm"] == "batch" else ("frozen",)
    for policy in policies:
        probing = {"microbatch": batch, "bn_policy": policy}
        label = f"ZO, {policy}" if len(policies) > 1 else "ZO"
        yield label, sizes.largest, Workload("", "", "zo", model, 1, IMAGES, probing)
    exact = {"microbatch": batch, "bn_policy": "frozen", "estimator": "jvp"}
    yield "ZO, jvp", sizes.largest, Workload("", "", "zo", model, 1, IMAGES, exact)
    summing = {"microbatch": batch, "penalties": (0.01,), "calibrate": False}
    yield "ridge", sizes.largest, Workload("", "", "ridge", model, 1, IMAGES, summing)


def _row(label: str, batch: int, floats: int, workload: Workload, run: bool) -> list[str]:
    built, _ = workloads.set_up(workload, {})
    (phase,) = built.phases
    (group,) = phase.groups
    params, model_state = jax.eval_shape(built.task.init, built.run_key)
    step_of = phase, group, params, model_state, built.data, built.engine
    step = client_step.compile_step(*step_of)
    memory = client_step.step_memory(step, *step_of)
    formula = client_step.memory_formula(
        sum(p.size for p in jax.tree.leaves(params)), batch, floats
    )
    measured = memory.arguments + memory.outputs + memory.temporaries
    row = [label, str(batch), *map(units.num_bytes, (formula, measured, memory.temporaries))]
    return [*row, f"{measured / formula:.1f}", *([_allocated(built, phase, step)] if run else [])]


def _allocated(built, phase, step) -> str:
    """Runs a step and returns the peak of the device's allocator so far."""
    state = start(phase, *built.task.init(keys.run_key(0)))._replace(opt_state=())
    batch = trees.squeeze(jax.jit(cohorts.gather)(built.data, jax.numpy.zeros(1, int)))
    own = keys.of_round(keys.run_key(0), 0).of(batch.client_id)
    jax.block_until_ready(step(state, batch, own))
    return units.num_bytes((jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"))


def main(argv: list[str]) -> int:
    """Compiles, prints a table, returns the exit status."""
    del argv
    given = flags.FLAGS
    model = {"name": given.model, "norm": given.norm}
    title = f"One client's step, {given.model}, {given.norm} norm, {IMAGES} images"
    table = Table(title=title, title_justify="left")
    for column in ("", "at once", "formula", "measured", "of it temporaries", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    if given.run:
        table.add_column("allocator's peak", justify="right")
    for batch in map(int, given.batches):
        for label, floats, workload in _steps(model, batch):
            table.add_row(*_row(label, batch, floats, workload, given.run))
    Console(width=100, highlight=False).print(table)
    return 0


def define_flags() -> None:
    """Defines the command's flags."""
    workloads.define_model_flags("resnet18", "batch")
    at_once = [str(count) for count in range(1, IMAGES + 1)]
    workloads.define_list("batches", ["1", "64", "900"], at_once, f"1 to {IMAGES}")
    flags.DEFINE_bool("run", False, "Also run the steps and print the allocator's peak.")


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)
