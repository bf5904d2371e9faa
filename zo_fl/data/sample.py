"""The embedded sample of CIFAR-10: what runs where there is no network and no data.

One lossless WebP mosaic (1.7 kB an image) and a JSON file with labels and original row numbers.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

import json
import pathlib

import cv2
import numpy as np

from zo_fl.data import decode
from zo_fl.engine.errors import ConfigError
from zo_fl.engine.types import Dataset

# Channel mean and standard deviation over all pixels of the whole CIFAR-10 training set.
STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
PATH = pathlib.Path(__file__).parent / "cifar10_sample.webp"
_PER_CLASS = {"train": 250, "test": 100}
_COLUMNS = 50
_LOSSLESS = [cv2.IMWRITE_WEBP_QUALITY, 101]  # above 100 OpenCV writes lossless WebP


def load_sample(path: str | pathlib.Path = PATH) -> Dataset:
    """Returns the sample: 2,500 training and 1,000 test images, balanced over the 10 classes.

    They come from the official training and test set respectively. Mean and standard deviation are
    those of the whole training set.

    Args:
      path: the ``.webp`` file; its ``.json`` lies beside it.

    Raises:
      ConfigError: a file is missing or damaged.
    """
    path = pathlib.Path(path)
    try:
        facts = json.loads(path.with_suffix(".json").read_text())
        images = _tiles(decode.decode_image(path.read_bytes(), channels=3))
        labels = {split: np.array(facts[split]["labels"], np.int32) for split in _PER_CLASS}
        images = images[: sum(map(len, labels.values()))]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"the CIFAR-10 sample {path} cannot be read ({error}); reinstall the package, or use "
            "config.data.name='synthetic'"
        ) from error
    mean, std = np.array(STATISTICS, np.float32)
    return Dataset(
        name="cifar10_sample",
        train={"image": images[: len(labels["train"])], "label": labels["train"]},
        test={"image": images[len(labels["train"]) :], "label": labels["test"]},
        num_classes=10,
        mean=mean,
        std=std,
    )


def make_sample(dataset: Dataset, path: str | pathlib.Path, seed: int = 0) -> int:
    """Writes a sample of CIFAR-10 to ``path`` (``.webp``) and ``.json`` beside it; returns bytes.

    The JSON holds, for ``train`` and ``test``, the ``labels`` and the ``indices`` of the images:
    rows of ``dataset``, which for ``datasets.load("cifar10")`` are those of the official files.

    Args:
      dataset: all of CIFAR-10.
      path: where to write.
      seed: of the draw, which is without replacement and balanced over the classes.

    Raises:
      ConfigError: the path does not end in ``.webp``.
    """
    path = pathlib.Path(path)
    if path.suffix != ".webp":
        raise ConfigError(f"--make_sample={path} must end in .webp")
    rng = np.random.default_rng(seed)
    images, facts = [], {}
    for split, per_class in _PER_CLASS.items():
        examples = getattr(dataset, split)
        all_images, all_labels = examples["image"], examples["label"]
        chosen = [
            rng.choice(np.flatnonzero(all_labels == label), per_class, replace=False)
            for label in range(dataset.num_classes)
        ]
        rows = rng.permutation(np.concatenate(chosen))
        images.append(all_images[rows])
        facts[split] = {"indices": rows.tolist(), "labels": all_labels[rows].tolist()}
    mosaic = _mosaic(np.concatenate(images))
    _, encoded = cv2.imencode(".webp", cv2.cvtColor(mosaic, cv2.COLOR_RGB2BGR), _LOSSLESS)
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded.tofile(path)
    path.with_suffix(".json").write_text(json.dumps(facts) + "\n")
    return len(encoded)


def _mosaic(images: np.ndarray) -> np.ndarray:
    """Returns ``u8[rows * 32, 50 * 32, 3]`` from ``u8[n, 32, 32, 3]``, ``n`` a multiple of 50."""
    _, height, width, channels = images.shape
    grid = images.reshape(-1, _COLUMNS, height, width, channels).swapaxes(1, 2)
    return grid.reshape(-1, _COLUMNS * width, channels)


def _tiles(mosaic: np.ndarray, size: int = 32) -> np.ndarray:
    """Returns ``u8[n, 32, 32, 3]``, the inverse of ``_mosaic``."""
    grid = mosaic.reshape(-1, size, _COLUMNS, size, mosaic.shape[-1]).swapaxes(1, 2)
    return np.ascontiguousarray(grid.reshape(-1, size, size, mosaic.shape[-1]))
