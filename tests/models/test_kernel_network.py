"""The kernel network equals its formula, written again as loops in float64."""

import jax
import numpy as np

from zo_fl.models.kernel_network import KernelNetwork


def seen(x, size):
    """Windows around all pixels, zeros beyond the edge; rows, then columns, then channels."""
    margin = size // 2
    padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    found = np.zeros((*x.shape[:3], size * size * x.shape[3]))
    for row, column in np.ndindex(x.shape[1:3]):
        found[:, row, column] = padded[:, row : row + size, column : column + size].reshape(
            len(x), -1
        )
    return found


def pooled(y, places):
    """Gaussian means of ``y[n, H, W, K]`` around the middles of ``places`` equal strides."""

    def weight(distance, stride):
        if abs(distance) > stride + 0.5:
            return 0.0
        whole = sum(np.exp(-((t / stride) ** 2)) for t in range(-stride, stride + 1))
        return np.exp(-((distance / stride) ** 2)) / whole

    sides = y.shape[1:3]
    strides = [-(-side // count) for side, count in zip(sides, places, strict=True)]
    found = np.zeros((len(y), *places, y.shape[3]))
    for at in np.ndindex(*places):
        middles = [
            (side - 1) / 2 + stride * (i - (count - 1) / 2)
            for i, side, stride, count in zip(at, sides, strides, places, strict=True)
        ]
        for pixel in np.ndindex(*sides):
            share = np.prod(
                [weight(p - m, s) for p, m, s in zip(pixel, middles, strides, strict=True)]
            )
            found[(slice(None), *at)] += share * y[(slice(None), *pixel)]
    return found


def layer(windows, values, places):
    size = np.sqrt((windows**2).sum(-1, keepdims=True))
    responses = size * np.exp((windows @ values["kernel"] / size - 1) / 0.36)
    return pooled(responses, places) @ values["mix"]


def features(values, x):
    x = seen(x, 9) @ values["whitening"]["kernel"] + values["whitening"]["bias"]
    x = x - x.mean((1, 2, 3), keepdims=True)
    x = x / np.sqrt((x**2).mean((1, 2, 3), keepdims=True))
    x = layer(seen(x, 3), values["layer1"], (-(-x.shape[1] // 2), -(-x.shape[2] // 2)))
    windows = seen(x, 3) @ values["directions"]["kernel"]
    return layer(windows, values["layer2"], (3, 3)).reshape(len(x), -1)


def test_the_network_is_its_formula():
    images = np.random.default_rng(0).normal(size=(2, 9, 11, 2))
    model = KernelNetwork(kernels=5)
    run = jax.jit(lambda x: model.init_with_output(jax.random.key(0), x))
    found, variables = run(np.float32(images))
    values = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    expected = (features(values, images) + features(values, images[:, :, ::-1])) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
