"""Data sets by name, as arrays on the host.

cifar10_sample   3,500 real CIFAR-10 images that come with the package
synthetic        1,000 made-up images of 8x8 pixels, for smoke tests
anything else    a TFDS set that is prepared in ``data_dir``
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from zo_fl.data import decode, tfds_source
from zo_fl.engine.fields import ConfigError
from zo_fl.engine.types import Dataset

# Mean and standard deviation of each channel over all training pixels. The (.2023, .1994, .2010)
# that is often given for CIFAR-10 averages the deviations of single batches; (.485, .456, .406) is
# ImageNet at full size.
_CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_IMAGENET32 = ((0.4811, 0.4575, 0.4079), (0.2604, 0.2532, 0.2682))
_STATISTICS = {
    "cifar10": _CIFAR10,
    "imagenet_resized/32x32": _IMAGENET32,
    "imagenet32_200": _IMAGENET32,
}
SAMPLE = Path(__file__).parent / "cifar10_sample.webp"
_SAMPLE_COLUMNS = 50  # images side by side in the file


def load(name: str, data_dir: str | None = None) -> Dataset:
    """Returns a data set by name.

    The test split is the set's ``test``, or its ``validation`` if it has no ``test``.

    Args:
      name: ``cifar10_sample``, ``synthetic``, or a TFDS set with an ``image`` of one size and a
        ``label``: ``cifar10``, ``imagenet_resized/32x32``, ``cifar10:3.0.2``.
      data_dir: folder of the TFDS sets, see ``tfds_source.folder_of_sets``; it is only read.

    Raises:
      ConfigError: the data set is not there or cannot be used.
    """
    if name in LOADERS:
        return LOADERS[name]()
    arrays, facts = tfds_source.load(tfds_source.find(name, data_dir, [*LOADERS]), name)
    mean, std = _STATISTICS.get(name.split(":")[0], (facts["mean"], facts["std"]))
    train, test = (
        {"image": arrays[f"{split}_images"], "label": arrays[f"{split}_labels"]}
        for split in ("train", "test")
    )
    statistics = np.array(mean, np.float32), np.array(std, np.float32)
    return Dataset(name, train, test, facts["num_classes"], *statistics)


def load_sample(path: Path = SAMPLE) -> Dataset:
    """Returns 2,500 training and 1,000 test images of CIFAR-10, balanced over the 10 classes.

    They come from the official training and test set, the statistics from all of the former.
    ``path`` is a lossless WebP file of 32x32 tiles; the ``.json`` file beside it holds the label of
    each tile and its row in the official files.

    Raises:
      ConfigError: a file is missing or damaged.

    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    try:
        facts = json.loads(path.with_suffix(".json").read_text())
        train, test = (np.array(facts[split]["labels"], np.int32) for split in ("train", "test"))
        mosaic = decode.decode_image(path.read_bytes(), channels=3)
        tiles = mosaic.reshape(-1, 32, _SAMPLE_COLUMNS, 32, 3).swapaxes(1, 2)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"the CIFAR-10 sample {path} cannot be read ({error}); reinstall the package, or use "
            "config.data.name='synthetic'"
        ) from error
    images = tiles.reshape(-1, 32, 32, 3)
    of_train, of_test = np.split(images[: len(train) + len(test)], [len(train)])
    splits = {"image": of_train, "label": train}, {"image": of_test, "label": test}
    mean, std = np.array(_CIFAR10, np.float32)
    return Dataset("cifar10_sample", *splits, 10, mean, std)


@functools.cache
def _synthetic() -> Dataset:
    """Returns 800 + 200 images of 8x8: one smooth pattern a class, with stronger noise."""
    rng = np.random.default_rng(0)
    patterns = rng.normal(size=(10, 4, 4, 3)).repeat(2, axis=1).repeat(2, axis=2)

    def split(count: int) -> dict[str, np.ndarray]:
        labels = rng.permutation(np.arange(count) % 10)
        pixels = 127.5 + 30 * patterns[labels] + 50 * rng.normal(size=(count, 8, 8, 3))
        images = np.clip(pixels, 0, 255).astype(np.uint8)
        return {"image": images, "label": labels.astype(np.int32)}

    train, test = split(800), split(200)
    scaled = train["image"] / 255.0
    mean, std = scaled.mean((0, 1, 2)), scaled.std((0, 1, 2))
    return Dataset("synthetic", train, test, 10, mean.astype(np.float32), std.astype(np.float32))


# name -> function that makes the data set; all other names are TFDS sets
LOADERS: dict[str, Callable[[], Dataset]] = {
    "cifar10_sample": load_sample,
    "synthetic": _synthetic,
}
