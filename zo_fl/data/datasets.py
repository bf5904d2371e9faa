"""Data sets by name, as arrays on the host.

cifar10_sample   3,500 real CIFAR-10 images that come with the package
synthetic        1,000 made-up images of 8x8, for smoke tests
anything else    a TFDS set that lies prepared in ``data_dir``: decoded once, then memory-mapped
"""

import functools

import numpy as np

from zo_fl.data import sample, tfds_source
from zo_fl.engine.types import Dataset

# Channel mean and standard deviation over all training pixels. The (.2023, .1994, .2010) that is
# often given for CIFAR-10 averages the deviations of single batches; (.485, .456, .406) is
# ImageNet at full size.
_IMAGENET32 = ((0.4811, 0.4575, 0.4079), (0.2604, 0.2532, 0.2682))
_STATISTICS = {
    "cifar10": sample.STATISTICS,
    "imagenet_resized/32x32": _IMAGENET32,
    "imagenet32_200": _IMAGENET32,
}


def load(name: str, data_dir: str | None = None) -> Dataset:
    """Returns a data set.

    The test split is the set's ``test``, else its ``validation``. Where examples have an ``id``,
    rows are in its order: row numbers and partitions do not depend on how a set was sharded.

    Args:
      name: ``cifar10_sample``, ``synthetic``, or a TFDS set with an ``image`` of one size and a
        ``label``: ``cifar10``, ``imagenet_resized/32x32``, ``cifar10:3.0.2``.
      data_dir: where TFDS sets lie; empty or None = ``$TFDS_DATA_DIR``, else
        ``~/tensorflow_datasets``. Only read from.

    Raises:
      ConfigError: no such set there, or one that cannot be used.
    """
    if name == "cifar10_sample":
        return sample.load_sample()
    if name == "synthetic":
        return _synthetic()
    folder = tfds_source.find(name, data_dir or tfds_source.default_data_dir())
    arrays, meta = tfds_source.load(folder, name)
    mean, std = _STATISTICS.get(name.split(":")[0], (meta["mean"], meta["std"]))
    train, test = (
        {"image": arrays[f"{split}_images"], "label": arrays[f"{split}_labels"]}
        for split in ("train", "test")
    )
    mean, std = np.array(mean, np.float32), np.array(std, np.float32)
    return Dataset(name, train, test, meta["num_classes"], mean, std)


@functools.cache
def _synthetic() -> Dataset:
    """Returns 800 + 200 images of 8x8: a smooth pattern a class, with more noise than that."""
    rng = np.random.default_rng(0)
    patterns = rng.normal(size=(10, 4, 4, 3)).repeat(2, axis=1).repeat(2, axis=2)

    def split(count: int) -> dict[str, np.ndarray]:
        labels = rng.permutation(np.arange(count) % 10)
        pixels = 127.5 + 30 * patterns[labels] + 50 * rng.normal(size=(count, 8, 8, 3))
        images = np.clip(pixels, 0, 255).astype(np.uint8)
        return {"image": images, "label": labels.astype(np.int32)}

    train, test = split(800), split(200)
    scaled = train["image"] / 255.0
    return Dataset(
        "synthetic",
        train,
        test,
        num_classes=10,
        mean=scaled.mean(axis=(0, 1, 2)).astype(np.float32),
        std=scaled.std(axis=(0, 1, 2)).astype(np.float32),
    )
