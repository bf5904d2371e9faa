"""Times the convolutions of ``zo_fl.models.conv`` in whole models.

Results: docs/results/notes_on_performance.

    python -m benchmarks.conv [--cases=cnn_large,cnn] [--implementations=xla]

For each model and implementation: a forward pass, an SGD step in a Python loop over a jitted step
("alone"), and an SGD step inside ``lax.scan``. Rounds of measurements are interleaved over the
implementations, so that another process's load meets all alike; compare medians of one table, never
of two. Flags of XLA and of the C library are set outside, e.g.
``XLA_FLAGS=--xla_cpu_enable_fast_math=true python -m benchmarks.conv``.

The case ``layers`` times each product of ``cnn_large``'s step by itself, and of the first
convolution of ``cnn``, beside the largest product that the machine does: what of a step is not in
there is pooling, activations and the update.

The last case, ``weights``, is the small CNN for several sets of weights: ``vmap`` (grouped
convolutions), a loop (``lax.map``), or one after the other (unrolled); forward passes of the same
and of different images, and gradients. It is what ``config.run.clients_per_vmap`` and
``config.run.unroll`` choose between.
"""

import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import flags

from experiments import cli
from zo_fl.engine.layout import Engine
from zo_fl.engine.types import Array, PyTree
from zo_fl.host.devices import make_mesh
from zo_fl.models import create
from zo_fl.models.conv import IMPLEMENTATIONS, conv2d

from . import workloads

LEARNING_RATE = 0.01
WEIGHT_SETS = 8
LAYERS_BATCH, LAYERS_STEPS = 50, 6


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
    """Returns the programs to time, each of ``case.steps`` steps a call."""
    forward, step, variables, images, labels = _setup(case, implementation)
    forward, single = compiled(forward), compiled(step)
    scanned = compiled(functools.partial(jax.lax.scan, step))

    def alone():
        current, value = variables, None
        for index in range(case.steps):
            current, value = single(current, (images[index], labels[index]))
        return current, value

    return {
        "forward": lambda: [forward(variables, x) for x in images],
        "step alone": alone,
        "step in a scan": lambda: scanned(variables, (images, labels)),
    }


def compiled(function: Callable) -> Callable:
    """Returns the function compiled as rounds are."""
    return jax.jit(function, compiler_options=Engine(make_mesh()).compiler_options)


class Product(NamedTuple):
    """A layer of the benchmark CNN.

    Attributes:
      x: shape of its input, without the examples.
      kernel: shape of its weights: HWIO of a convolution without padding, or of a dense layer.
    """

    x: tuple[int, ...]
    kernel: tuple[int, ...]

    def apply(self, x: Array, kernel: Array, implementation: str) -> Array:
        """Returns the layer's output before its bias."""
        if len(self.kernel) == 2:
            return x @ kernel
        return conv2d(x, kernel, 1, "VALID", implementation)


LAYERS = {
    "conv0": Product((32, 32, 3), (3, 3, 3, 32)),
    "conv1": Product((30, 30, 32), (3, 3, 32, 64)),
    "hidden": Product((14 * 14 * 64,), (14 * 14 * 64, 128)),
}
SMALL = {"conv0 of cnn": Product((34, 34, 3), (3, 3, 3, 16))}  # zeros around its images


def _layer_programs(
    layer: Product, implementation: str
) -> tuple[dict[str, Callable[[], PyTree]], int]:
    """Returns a layer's three products, each ``LAYERS_STEPS`` times a call, and FLOPs of one."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (LAYERS_BATCH, *layer.x))
    kernel = jax.random.normal(keys[1], layer.kernel)
    apply = functools.partial(layer.apply, implementation=implementation)
    out = jax.eval_shape(apply, x, kernel)
    cotangent = jax.random.normal(keys[2], out.shape)
    products = {
        "forward": lambda x, k, g: apply(x, k),
        "by the input": lambda x, k, g: jax.vjp(lambda x: apply(x, k), x)[1](g)[0],
        "by the kernel": lambda x, k, g: jax.vjp(lambda k: apply(x, k), k)[1](g)[0],
    }

    def repeated(product):
        def all_steps(x, kernel, cotangent):
            def step(total, _):
                # Inputs depend on the last result: nothing can be left out, or done once for all.
                old = total.ravel()[0] * 1e-9
                return total + product(x + old, kernel + old, cotangent + old), None

            zeros = jnp.zeros(jax.eval_shape(product, x, kernel, cotangent).shape)
            return jax.lax.scan(step, zeros, None, length=LAYERS_STEPS)[0]

        return functools.partial(compiled(all_steps), x, kernel, cotangent)

    programs = {name: repeated(product) for name, product in products.items()}
    return programs, 2 * out.size * math.prod(layer.kernel[:-1])


def _print_layers(implementations: Sequence[str], repeats: int) -> None:
    """Prints the time and the speed of each product of the layers."""
    programs, flops = {}, {}
    for name, layer in (LAYERS | SMALL).items():
        for implementation in implementations if len(layer.kernel) == 4 else ("",):
            row = f"{name} {implementation}".strip()
            made, flops[row] = _layer_programs(layer, implementation)
            programs |= {(row, column): program for column, program in made.items()}
    side = jax.random.normal(jax.random.key(0), (1024, 1024))
    square = functools.partial(compiled(jnp.matmul), side, side)
    took = medians({**programs, ("", ""): square}, repeats)
    reached = 2 * 1024**3 / took.pop(("", "")) / 1e6
    each = {key: value / LAYERS_STEPS for key, value in took.items()}
    print_table(f"cnn_large, {LAYERS_BATCH} images, ms", each)
    speeds = {(row, column): flops[row] / ms / 1e6 for (row, column), ms in each.items()}
    print_table(f"GFLOP/s; a product of 1024 x 1024: {reached:.0f}", speeds)


def _weight_set_programs(case: Case) -> dict[tuple[str, str], Callable[[], PyTree]]:
    """Returns passes for ``WEIGHT_SETS`` sets of weights, by how and of which images."""

    def program(implementation, mapped, own_images, train):
        forward, step, variables, images, labels = _setup(case, implementation)
        stacked = jax.tree.map(
            lambda v: jnp.stack([v * (1 + i / 10) for i in range(WEIGHT_SETS)]), variables
        )
        x, y = images[:WEIGHT_SETS], labels[:WEIGHT_SETS]
        if train:
            run = compiled(
                lambda v, *batch: mapped(lambda args: step(args[0], args[1:]), (v, *batch))
            )
            return lambda: run(stacked, x, y)
        if own_images:
            run = compiled(lambda v, x: mapped(lambda pair: forward(*pair), (v, x)))
            return lambda: run(stacked, x)
        run = compiled(lambda v, x: mapped(lambda v: forward(v, x), v))
        return lambda: run(stacked, images[0])

    def vmap(function, stacked):
        return jax.vmap(function)(stacked)

    def unrolled(function, stacked):
        each = [
            function(jax.tree.map(lambda leaf, i=i: leaf[i], stacked)) for i in range(WEIGHT_SETS)
        ]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)

    ways = {"vmap": vmap, "a loop": jax.lax.map, "unrolled": unrolled}
    columns = {
        "forward, same images": (False, False),
        "forward, own images": (True, False),
        "SGD step": (True, True),
    }
    return {
        (f"{way}, {implementation}", column): program(implementation, mapped, *which)
        for way, mapped in ways.items()
        for implementation in ("xla", "fast_grad")
        for column, which in columns.items()
    }


def medians(programs: dict[tuple, Callable[[], PyTree]], repeats: int) -> dict[tuple, float]:
    """Returns each program's median milliseconds a call, measured in interleaved rounds."""
    milliseconds = {key: [] for key in programs}
    for program in programs.values():
        jax.block_until_ready(program())
    for _ in range(repeats):
        for key, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            milliseconds[key].append(1e3 * (time.perf_counter() - start))
    return {key: statistics.median(values) for key, values in milliseconds.items()}


def print_table(title: str, values: dict[tuple[str, str], float]) -> None:
    """Prints values by (row, column) as a Markdown table."""
    rows, columns = (list(dict.fromkeys(names)) for names in zip(*values, strict=True))
    print(f"\n{title}\n\n| | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for row in rows:
        cells = [f"{values[row, column]:.1f}" for column in columns]
        print(f"| {row} | " + " | ".join(cells) + " |", flush=True)


def main(argv: list[str]) -> int:
    """Measures, prints Markdown tables, returns the exit status."""
    del argv
    for name in flags.FLAGS.cases:
        if name == "layers":
            _print_layers(flags.FLAGS.implementations, flags.FLAGS.repeats)
            continue
        if name == "weights":
            programs = _weight_set_programs(CASES["cnn"])
            title = f"cnn, {WEIGHT_SETS} sets of weights, ms for all"
            print_table(title, medians(programs, flags.FLAGS.repeats))
            continue
        case = CASES[name]
        programs = {
            (implementation, column): program
            for implementation in flags.FLAGS.implementations
            for column, program in _programs(case, implementation).items()
        }
        took = medians(programs, flags.FLAGS.repeats)
        title = f"{name}, norm {case.norm}, batch {case.batch_size}, ms a step"
        print_table(title, {key: value / case.steps for key, value in took.items()})
    return 0


def define_flags() -> None:
    """Defines the command's flags."""
    workloads.define_list("cases", ["cnn_large", "cnn", "weights"], [*CASES, "layers", "weights"])
    workloads.define_list("implementations", ["xla", "fast_grad"], IMPLEMENTATIONS)
    flags.DEFINE_integer("repeats", 7, "Measurements of each.", lower_bound=1)


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)
