"""Prints how exact the scalars of a zeroth-order client are in each precision, and how long a pass
takes. See PERFORMANCE.md.

    python -m experiments.benchmarking.precision [--model=cnn] [--norm=group] [--eps=1e-4]

Loss differences F(w + eps z) - F(w - eps z) of freshly initialized weights and random images for
the same directions, against the same in float64: the root of the mean squared error over that of
the exact differences. 0 is exact; from 1 on the scalars are noise.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from zo_fl import models
from zo_fl.clients import directions, estimators
from zo_fl.core import keys
from zo_fl.core.engine import Engine
from zo_fl.core.precision import PRECISIONS
from zo_fl.core.task import classification
from zo_fl.host.devices import make_mesh

from .. import cli
from . import workloads

TAU = 0.75
REPEATS = 5


def _scalars(task, params, examples, eps: float, num_directions: int, repeats: int):
    """Returns ``f[S]`` and the median seconds of a pass in ``repeats`` calls after a first one."""
    add = directions.create("rademacher", TAU)
    estimator = estimators.create("two_point", add, eps=eps, num_directions=num_directions)
    mask = jnp.ones(len(examples["label"]), bool)
    weights = mask / mask.size
    options = Engine(make_mesh()).compiler_options

    def run(params, examples, direction_keys):
        def losses(params):
            return task.losses(params, {}, examples, mask, False)[0]

        return estimator.estimate(losses, weights, params, direction_keys).scalars

    program = jax.jit(run, compiler_options=options)
    arguments = params, examples, jax.random.split(keys.run_key(1), num_directions)
    seconds, scalars = [], None
    for _ in range(repeats + 1):
        start = time.perf_counter()
        scalars = jax.block_until_ready(program(*arguments))
        seconds.append((time.perf_counter() - start) / (2 * num_directions))
    return np.asarray(scalars, np.float64), statistics.median(seconds[1:] or seconds)


def main(argv: list[str]) -> int:
    """Measures, prints a table, returns the exit status."""
    del argv
    given = flags.FLAGS
    module = models.create(name=given.model, norm=given.norm, num_classes=workloads.NUM_CLASSES)
    half = np.full(3, 0.5, np.float32)
    task = classification(module, workloads.IMAGE_SHAPE, workloads.NUM_CLASSES, half, half)
    params, _ = jax.jit(task.init)(keys.run_key(0))
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (given.images, *workloads.IMAGE_SHAPE), dtype=np.uint8)
    labels = rng.integers(0, workloads.NUM_CLASSES, given.images, dtype=np.int32)
    rest = {"image": images, "label": labels}, given.eps, given.directions
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        exact, _ = _scalars(task.with_precision("float64"), wide, *rest, 0)
    device = jax.devices()[0].device_kind
    table = Table(title=f"{given.model}, eps {given.eps:g}, {given.images} images, {device}")
    for column in ("precision", "relative error of a scalar", "ms a pass"):
        table.add_column(column, justify="right")
    for name in PRECISIONS[:-1]:
        scalars, seconds = _scalars(task.with_precision(name), params, *rest, REPEATS)
        error = np.sqrt(np.mean((scalars - exact) ** 2) / np.mean(exact**2))
        table.add_row(name, f"{error:.2g}", f"{1e3 * seconds:.1f}")
    Console(width=100, highlight=False).print(table)
    return 0


def _define_flags() -> None:
    workloads.define_model_flags("cnn", "group")
    flags.DEFINE_float("eps", 1e-4, "Perturbation scale.", lower_bound=0)
    flags.DEFINE_integer("images", 32, "Of the client.", lower_bound=1)
    flags.DEFINE_integer("directions", 8, "Scalars that are compared.", lower_bound=1)


if __name__ == "__main__":
    _define_flags()
    cli.run(main)
