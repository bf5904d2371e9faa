"""Prints how exact the scalars of a zeroth-order client are: by estimator, eps and precision.

    python -m benchmarks.precision [--model=cnn] [--norm=group] [--eps=1e-4,1e-2] [--picture=F.png]

Directional derivatives <grad F(w), z> of freshly initialized weights and random images, as loss
differences over their step (two_point, forward) and by forward-mode differentiation (jvp), against
those in float64 by forward mode along the same directions: the root of the mean squared error over
that of the exact ones, and the correlation. An error of 0 is exact; from 1 on the scalars are
noise. See docs/results/notes_on_performance.
"""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import cli
from experiments.analysis import drawing
from zo_fl import models
from zo_fl.engine import keys
from zo_fl.engine.fields import ConfigError
from zo_fl.engine.image_task import classification
from zo_fl.engine.layout import Engine
from zo_fl.engine.precision import PRECISIONS
from zo_fl.host import style
from zo_fl.host.devices import make_mesh
from zo_fl.zo import directions, estimators

from . import workloads

TAU = 0.75
REPEATS = 5


class Measured(NamedTuple):
    """One row: how the scalars were made, and how exact they are.

    Attributes:
      estimator: of ``estimators.ESTIMATORS``.
      eps: None where there is none.
      precision: of ``PRECISIONS``.
      error: relative, of a scalar.
      correlation: with the exact ones.
      seconds: a direction.
    """

    estimator: str
    eps: float | None
    precision: str
    error: float
    correlation: float
    seconds: float


def _derivatives(task, params, examples, name: str, eps: float, count: int, repeats: int):
    """Returns ``f64[count]`` and the median seconds a direction in ``repeats`` calls."""
    add = directions.create("rademacher", TAU)
    estimator = estimators.ESTIMATORS[name](add, eps=eps, num_directions=count)
    mask = jnp.ones(len(examples["label"]), bool)
    weights = mask / mask.size
    options = Engine(make_mesh()).compiler_options

    def run(params, examples, direction_keys):
        def losses(params):
            return task.losses(params, {}, examples, mask, False)[0]

        scalars = estimator.estimate(losses, weights, params, direction_keys).scalars
        return estimator.coefficients(scalars) * count

    program = jax.jit(run, compiler_options=options)
    arguments = params, examples, jax.random.split(keys.run_key(1), count)
    seconds, found = [], None
    for _ in range(repeats + 1):
        start = time.perf_counter()
        found = jax.block_until_ready(program(*arguments))
        seconds.append((time.perf_counter() - start) / count)
    return np.asarray(found, np.float64), statistics.median(seconds[1:] or seconds)


def measure(task, params, examples, steps: Sequence[float], count: int) -> list[Measured]:
    """Returns a row an estimator, eps and precision, all along the same directions."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        exact, _ = _derivatives(
            task.with_precision("float64"), wide, examples, "jvp", 1.0, count, 0
        )
    rows = []
    on_cpu = jax.default_backend() == "cpu"  # there tf32 is float32
    for precision in ("float32", "bfloat16") if on_cpu else PRECISIONS[:-1]:
        for name in estimators.ESTIMATORS:
            for eps in steps if name != "jvp" else (None,):
                given = task.with_precision(precision), params, examples, name
                found, seconds = _derivatives(*given, eps or 1.0, count, REPEATS)
                error = np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2))
                agreement = np.corrcoef(found, exact)[0, 1] if found.std() else 0.0
                rows.append(Measured(name, eps, precision, float(error), float(agreement), seconds))
    return rows


def draw(rows: Sequence[Measured], path: Path, title: str) -> None:
    """Draws the errors against eps; what has none is a horizontal line."""
    figure = drawing.new_figure(title, 4.6, 7.2)
    axes = figure.subplots()
    lines = sorted({(row.estimator, row.precision) for row in rows if row.precision != "tf32"})
    marks = {"float32": "-", "bfloat16": "--"}
    names = list(estimators.ESTIMATORS)
    for name, precision in lines:
        mine = [row for row in rows if (row.estimator, row.precision) == (name, precision)]
        steps = [row.eps for row in mine if row.eps is not None]
        errors = [row.error for row in mine]
        if not steps:  # the same at any
            steps, errors = sorted({row.eps for row in rows if row.eps}), errors * 2
            steps = [steps[0], steps[-1]]
        axes.plot(
            steps,
            errors,
            color=style.COLOURS[names.index(name)],
            linestyle=marks[precision],
            marker="o" if len(errors) > 2 else "",
            label=f"{name}, {precision}",
        )
    axes.set(xscale="log", yscale="log", xlabel="ε", ylabel="relative error of a scalar")
    axes.axhline(1.0, color=style.FAINT, linewidth=0.8)
    style.decorate(axes)
    drawing.add_legend(figure, axes)
    figure.savefig(path, dpi=160)


def main(argv: list[str]) -> int:
    """Measures, prints a table, returns the exit status."""
    del argv
    given = flags.FLAGS
    try:
        steps = sorted(float(eps) for eps in given.eps)
    except ValueError:
        steps = []
    if not steps or min(steps) <= 0:
        raise ConfigError(f"eps {','.join(given.eps)!r}; allowed: numbers above 0; change --eps")
    module = models.create(name=given.model, norm=given.norm, num_classes=workloads.NUM_CLASSES)
    half = np.full(3, 0.5, np.float32)
    task = classification(module, workloads.IMAGE_SHAPE, workloads.NUM_CLASSES, half, half)
    params, _ = jax.jit(task.init)(keys.run_key(0))
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (given.images, *workloads.IMAGE_SHAPE), dtype=np.uint8)
    labels = rng.integers(0, workloads.NUM_CLASSES, given.images, dtype=np.int32)
    rows = measure(task, params, {"image": images, "label": labels}, steps, given.directions)
    device = jax.devices()[0].device_kind
    title = f"{given.model}, {given.images} images, {given.directions} directions, {device}"
    table = Table(title=title)
    for column in ("precision", "estimator", "eps", "relative error", "correlation", "ms"):
        table.add_column(column, justify="right")
    for row in rows:
        eps = "" if row.eps is None else f"{row.eps:g}"
        shown = f"{row.error:.2g}", f"{row.correlation:.4f}", f"{1e3 * row.seconds:.1f}"
        table.add_row(row.precision, row.estimator, eps, *shown)
    Console(width=100, highlight=False).print(table)
    if given.picture:
        draw(rows, Path(given.picture), f"Scalars of a client: {title}")
    return 0


def define_flags() -> None:
    """Defines the command's flags."""
    workloads.define_model_flags("cnn", "group")
    flags.DEFINE_list("eps", ["1e-5", "1e-4", "1e-3", "1e-2"], "Perturbation scales.")
    flags.DEFINE_integer("images", 32, "Of the client.", lower_bound=1)
    flags.DEFINE_integer("directions", 16, "Scalars that are compared.", lower_bound=2)
    flags.DEFINE_string("picture", None, "Also draw the errors to this file.")


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)
