"""Times other ways to write the forward convolutions of a round.

Results: docs/results/notes_on_performance.

    python -m benchmarks.conv_forms [--repeats=9]

Three tables, each interleaved over its rows' programs. A 3x3 convolution as one convolution, as one
product for each shifted view of the images, as one for each row of the kernel, over blocks of 16
channels, and with channels before pixels: milliseconds and GFLOP/s, beside a square product. And
the first convolutions of six passes over the same images, with norm and relu after them: one after
the other, as one convolution of six times the features, and as products with the same patches.
"""

import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import flags
from jax import lax

from experiments import cli
from zo_fl.engine.types import Array
from zo_fl.models.conv import conv2d

from .conv import compiled, medians, print_table

BLOCK = 16  # channels
PASSES = 6  # two for each of three directions
# Images, height and width, features in and out: of the benchmark CNN and of ResNet18.
SHAPES = ((100, 16, 32, 64), (50, 32, 64, 64), (50, 16, 128, 128), (50, 8, 256, 256))
FIRST = {"cnn": (101, 8), "cnn_large": (100, 32), "resnet18": (50, 64)}  # images, features


def shifted_views(x: Array, kernel: Array) -> Array:
    """Returns ``conv2d(x, kernel)`` of a 3x3 kernel as nine products."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    views = [(padded[:, i : i + height, j : j + width], i, j) for i in range(3) for j in range(3)]
    return functools.reduce(operator.add, (view @ kernel[i, j] for view, i, j in views))


def kernel_rows(x: Array, kernel: Array) -> Array:
    """Returns ``conv2d(x, kernel)`` of a 3x3 kernel as three products."""
    height, width, channels = x.shape[1:]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    joined = jnp.concatenate([padded[:, :, j : j + width] for j in range(3)], -1)
    rows = kernel.reshape(3, 3 * channels, -1)
    return functools.reduce(operator.add, (joined[:, i : i + height] @ rows[i] for i in range(3)))


def channel_blocks(x: Array, kernel: Array) -> Array:
    """Returns ``conv2d(x, kernel)`` as a sum over blocks of channels."""
    starts = range(0, x.shape[-1], BLOCK)
    parts = (conv2d(x[..., s : s + BLOCK], kernel[:, :, s : s + BLOCK]) for s in starts)
    return functools.reduce(operator.add, parts)


def channels_first(x: Array, kernel: Array) -> Array:
    """Returns the transpose ``f32[n, o, H, W]`` of ``conv2d`` for ``x: f32[n, c, H, W]``."""
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NCHW", "HWIO", "NCHW")
    )


FORMS = {
    "one convolution": conv2d,
    "nine shifted views": shifted_views,
    "three rows": kernel_rows,
    "blocks of 16 channels": channel_blocks,
}


def one_by_one(x: Array, kernels: Array) -> Array:
    """Returns sums over pixels after norm and relu, ``f32[p, n, o]``, a pass after the other.

    Args:
      x: ``f32[n, H, W, 3]``.
      kernels: of each pass, ``f32[p, 3, 3, 3, o]``.
    """
    return lax.map(lambda kernel: _rest(conv2d(x, kernel)), kernels)


def one_wide(x: Array, kernels: Array) -> Array:
    """Returns the same as ``one_by_one``, by one convolution."""
    passes, *window, features = kernels.shape
    wide = conv2d(x, jnp.moveaxis(kernels, 0, -2).reshape(*window, passes * features))
    split = wide.reshape(*wide.shape[:3], passes, features)
    return jnp.stack([_rest(split[..., index, :]) for index in range(passes)])


def same_patches(x: Array, kernels: Array) -> Array:
    """Returns the same as ``one_by_one``, by a product a pass with patches that are made once."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    views = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    patches = lax.optimization_barrier(jnp.concatenate(views, -1))
    flat = kernels.reshape(len(kernels), -1, kernels.shape[-1])
    return lax.map(lambda kernel: _rest(patches @ kernel), flat)


def no_convolution(x: Array, kernels: Array) -> Array:
    """Returns the work around the convolutions alone: no other way can be faster."""
    features = kernels.shape[-1]
    same = lax.optimization_barrier(jnp.broadcast_to(x[..., :1], (*x.shape[:3], features)))
    return lax.map(lambda kernel: _rest(same * kernel[0, 0, 0]), kernels)


FIRST_FORMS = {
    "one by one": one_by_one,
    "one wide convolution": one_wide,
    "the same patches": same_patches,
    "norm, relu and sums alone": no_convolution,
}


def _rest(x: Array) -> Array:
    return jax.nn.relu(x - x.mean((1, 2), keepdims=True)).sum((1, 2))


def _inputs(x_shape: tuple[int, ...], kernel_shape: tuple[int, ...]) -> tuple[Array, Array]:
    keys = jax.random.split(jax.random.key(0))
    return jax.random.normal(keys[0], x_shape), jax.random.normal(keys[1], kernel_shape)


def _form_programs() -> tuple[dict[tuple[str, str], Callable], dict[str, int]]:
    """Returns the programs by shape and form, and the FLOPs of a shape."""
    programs, flops = {}, {}
    for images, side, channels, features in SHAPES:
        row = f"{images} × {side} × {side} × {channels} to {features}"
        x, kernel = _inputs((images, side, side, channels), (3, 3, channels, features))
        flops[row] = 2 * images * side**2 * 9 * channels * features
        for name, form in FORMS.items():
            programs[row, name] = functools.partial(compiled(form), x, kernel)
        transposed = jnp.moveaxis(x, -1, 1)
        programs[row, "channels first"] = functools.partial(
            compiled(channels_first), transposed, kernel
        )
    return programs, flops


def _first_programs() -> dict[tuple[str, str], Callable]:
    programs = {}
    for model, (images, features) in FIRST.items():
        given = _inputs((images, 32, 32, 3), (PASSES, 3, 3, 3, features))
        row = f"{model}, {images} images, {features} features"
        for name, form in FIRST_FORMS.items():
            programs[row, name] = functools.partial(compiled(form), *given)
    return programs


def main(argv: list[str]) -> int:
    """Measures, prints Markdown tables, returns the exit status."""
    del argv
    repeats = flags.FLAGS.repeats
    programs, flops = _form_programs()
    side = jax.random.normal(jax.random.key(0), (1024, 1024))
    square = functools.partial(compiled(jnp.matmul), side, side)
    took = medians({**programs, ("", ""): square}, repeats)
    reached = 2 * 1024**3 / took.pop(("", "")) / 1e6
    print_table("A 3x3 convolution, ms", took)
    speeds = {(row, column): flops[row] / ms / 1e6 for (row, column), ms in took.items()}
    print_table(f"GFLOP/s; a product of 1024 x 1024: {reached:.0f}", speeds)
    print_table(f"First convolutions of {PASSES} passes, ms", medians(_first_programs(), repeats))
    return 0


def define_flags() -> None:
    """Defines the command's flags."""
    flags.DEFINE_integer("repeats", 9, "Measurements of each.", lower_bound=1)


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)
