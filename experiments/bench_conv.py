"""Times the convolutions of ``zo_fl.models.conv`` in whole models. Results: PERFORMANCE.md.

    python -m experiments.bench_conv [--cases=cnn_large,cnn] [--implementations=xla,fast_grad]

For each model and implementation: a forward pass, an SGD step in a Python loop over a jitted step
("alone"), and an SGD step inside ``lax.scan``. Rounds of measurements are interleaved over the
implementations, so that another process's load meets all alike; compare medians of one table, never
of two. Flags of XLA and of the C library are set outside, e.g.
``XLA_FLAGS=--xla_cpu_enable_fast_math=true python -m experiments.bench_conv``.

The last case, ``weights``, is a forward pass of the small CNN for several sets of weights at once,
as in ``clients_per_vmap`` or directions mapped over.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from zo_fl.models import create
from zo_fl.types import Array, PyTree

LEARNING_RATE = 0.01
WEIGHT_SETS = 8


class Case(NamedTuple):
    """A model and how it is trained.

    Attributes:
      name: of ``zo_fl.models``.
      norm: its norm.
      batch_size: images a step.
      steps: of the scan, and of the loop.
    """

    name: str
    norm: str
    batch_size: int
    steps: int


CASES = {
    "cnn_large": Case("cnn_large", "none", 50, 10),
    "cnn": Case("cnn", "group", 16, 10),
    "resnet18": Case("resnet18", "batch", 64, 2),
}


def _setup(case: Case, implementation: str) -> tuple[Callable, Callable, PyTree, Array, Array]:
    """Returns ``forward``, ``step``, variables, images ``f32[steps, n, 32, 32, 3]``, labels."""
    module = create(name=case.name, norm=case.norm, conv=implementation, num_classes=10)
    keys = jax.random.split(jax.random.key(0))
    shape = (case.steps, case.batch_size)
    images = jax.random.normal(keys[0], (*shape, 32, 32, 3))
    labels = jax.random.randint(keys[1], shape, 0, 10)
    variables = jax.jit(functools.partial(module.init, train=False))(keys[0], images[0])

    def loss(params, state, x, y):
        inputs = {"params": params, **state}
        logits, state = module.apply(inputs, x, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), state

    def step(variables, batch):
        state = dict(variables)
        params = state.pop("params")
        (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params, state, *batch)
        params = jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, grads)
        return {"params": params, **state}, value

    forward = functools.partial(module.apply, train=False)
    return forward, step, variables, images, labels


def _programs(case: Case, implementation: str) -> dict[str, Callable[[], PyTree]]:
    """Returns what is timed, each taking ``case.steps`` steps a call."""
    forward, step, variables, images, labels = _setup(case, implementation)
    forward, single = jax.jit(forward), jax.jit(step)
    scanned = jax.jit(functools.partial(jax.lax.scan, step))

    def alone():
        current = variables
        for index in range(case.steps):
            current, value = single(current, (images[index], labels[index]))
        return current, value

    return {
        "forward": lambda: [forward(variables, x) for x in images],
        "step alone": alone,
        "step in a scan": lambda: scanned(variables, (images, labels)),
    }


def _weight_set_programs(case: Case) -> dict[str, Callable[[], PyTree]]:
    """Returns forward passes of one batch for ``WEIGHT_SETS`` sets of weights."""

    def program(implementation, mapped):
        forward, _, variables, images, _ = _setup(case, implementation)
        stacked = jax.tree.map(
            lambda v: jnp.stack([v * (1 + i / 10) for i in range(WEIGHT_SETS)]), variables
        )
        run = jax.jit(lambda stacked, x: mapped(lambda v: forward(v, x), stacked))
        return lambda: run(stacked, images[0])

    def vmap(function, stacked):
        return jax.vmap(function)(stacked)

    return {
        "vmap, xla": program("xla", vmap),
        "vmap, fast_grad": program("fast_grad", vmap),
        "vmap, patches": program("patches", vmap),
        "lax.map, fast_grad": program("fast_grad", jax.lax.map),
        "lax.map, patches": program("patches", jax.lax.map),
    }


def _medians(programs: dict[str, Callable[[], PyTree]], repeats: int) -> dict[str, float]:
    """Returns each program's median seconds a call, measured in interleaved rounds."""
    seconds = {name: [] for name in programs}
    for program in programs.values():
        jax.block_until_ready(program())
    for _ in range(repeats):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _print_case(name: str, implementations: list[str], repeats: int) -> None:
    """Prints one table of milliseconds a step."""
    case = CASES[name]
    programs = {
        (implementation, what): program
        for implementation in implementations
        for what, program in _programs(case, implementation).items()
    }
    medians = _medians(programs, repeats)
    columns = list(dict.fromkeys(what for _, what in medians))
    print(f"\n{name}, norm {case.norm}, batch {case.batch_size}, ms a step\n")
    print("| implementation | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for implementation in implementations:
        cells = [f"{1e3 * medians[implementation, c] / case.steps:.1f}" for c in columns]
        print(f"| {implementation} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Parses the command line, measures, prints Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", default="cnn_large,cnn,weights")
    parser.add_argument("--implementations", default="xla,fast_grad,patches")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    for name in arguments.cases.split(","):
        if name != "weights":
            _print_case(name, arguments.implementations.split(","), arguments.repeats)
            continue
        print(f"\ncnn, {WEIGHT_SETS} sets of weights, batch 16, ms a forward pass of all\n")
        print("| mapped by, implementation | ms |\n|---|---|")
        medians = _medians(_weight_set_programs(CASES["cnn"]), arguments.repeats)
        for program, seconds in medians.items():
            print(f"| {program} | {1e3 * seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
