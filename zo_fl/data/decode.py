"""Encoded images to arrays, in several threads.

OpenCV releases Python's lock while it decodes: an image of 32x32 pixels takes 45 us with two
threads, and 83 us with Pillow.
"""

import os
from collections.abc import Callable, Iterable
from concurrent import futures
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from zo_fl.engine.fields import ConfigError

_CHUNK = 512  # images a task: the thread pool costs little, and the bar moves smoothly
_READ_FLAGS = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}
_TO_RGB = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}


def decode_image(data: bytes, channels: int) -> np.ndarray:
    """Returns a PNG, JPEG or WebP image as ``u8[H, W, channels]`` in RGB order.

    There are 1, 3 or 4 channels; grey images are converted to RGB and back as needed.

    Raises:
      ValueError: OpenCV cannot decode it.
    """
    flags = _READ_FLAGS.get(channels, cv2.IMREAD_UNCHANGED)
    if channels in _READ_FLAGS:
        flags |= cv2.IMREAD_IGNORE_ORIENTATION  # TFDS does not turn images either
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise ValueError("an image cannot be decoded")
    return cv2.cvtColor(image, _TO_RGB[channels]) if channels in _TO_RGB else image[..., None]


def decode_split(
    source: Any,
    out: Path,
    split: str,
    shape: tuple[int, ...],
    num_classes: int,
    advance: Callable[[int], None],
) -> None:
    """Decodes one split into ``out/<split>_images.npy`` and ``out/<split>_labels.npy``.

    Rows are sorted by the feature ``id`` if there is one: a partition must not depend on how TFDS
    sharded the set.

    Args:
      source: TFDS data source of examples with an encoded ``image`` and a ``label``.
      out: an existing folder.
      split: ``"train"`` or ``"test"``.
      shape: ``(H, W, c)`` of every image.
      num_classes: labels must lie in ``[0, num_classes)``.
      advance: called with the number of decoded images, from several threads.

    Raises:
      ConfigError: images differ in size, or a label is out of range.
    """
    order = _order_by_id(source)
    images = np.lib.format.open_memmap(
        out / f"{split}_images.npy", mode="w+", dtype=np.uint8, shape=(len(source), *shape)
    )
    labels = np.empty(len(source), np.int32)

    def decode(start: int) -> None:
        rows = range(start, min(start + _CHUNK, len(source)))
        examples = source.__getitems__([int(order[row]) for row in rows])
        for row, example in zip(rows, examples, strict=True):
            image = decode_image(example["image"], shape[-1])
            if image.shape != shape:
                raise ConfigError(
                    f"config.data.name: the {split} images have the sizes {shape} and "
                    f"{image.shape}; allowed: data sets with images of one size"
                )
            images[row], labels[row] = image, example["label"]
        advance(len(rows))

    _in_threads(decode, range(0, len(source), _CHUNK))
    if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
        raise ConfigError(
            f"config.data.name: the {split} labels lie in [{labels.min()}, {labels.max()}]; "
            f"allowed: data sets with labels in [0, {num_classes})"
        )
    images.flush()
    np.save(out / f"{split}_labels.npy", labels)


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation ``f32[c]`` of each channel, for pixels in [0, 1].

    Images ``u8[N, H, W, c]`` may be mapped from a file: they are read in blocks. A constant channel
    has deviation 1, because images are divided by it.
    """
    histograms = np.zeros((images.shape[-1], 256), np.int64)  # exact, and fast for bytes
    for start in range(0, len(images), 8192):
        block = images[start : start + 8192]
        for channel, histogram in enumerate(histograms):
            histogram += np.bincount(block[..., channel].ravel(), minlength=256)
    shares = histograms / np.maximum(histograms.sum(axis=1, keepdims=True), 1)
    values = np.arange(256) / 255
    mean = shares @ values
    std = np.sqrt(np.maximum(shares @ values**2 - mean**2, 0))
    return mean.astype(np.float32), np.where(std > 1e-6, std, 1).astype(np.float32)


def _order_by_id(source: Any) -> np.ndarray:
    """Returns positions in a source, ``i64[N]``, sorted by the feature ``id`` if there is one."""
    positions = np.arange(len(source))
    if not len(source) or not isinstance(source[0].get("id"), bytes):
        return positions
    ids = np.empty(len(source), object)

    def read(start: int) -> None:
        chunk = positions[start : start + _CHUNK].tolist()
        ids[start : start + _CHUNK] = [example["id"] for example in source.__getitems__(chunk)]

    _in_threads(read, range(0, len(source), _CHUNK))
    return np.argsort(ids.astype(bytes), kind="stable")


def _in_threads(task: Callable[[int], None], starts: Iterable[int]) -> None:
    """Calls ``task(start)`` for each start; an error or Ctrl-C cancels the calls not yet begun."""
    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(task, starts))
