"""A data set from arrays in memory."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from zo_fl.engine.errors import ConfigError
from zo_fl.engine.types import Dataset


def dataset(
    x_train: Any,
    y_train: Any,
    x_test: Any,
    y_test: Any,
    *,
    client_indices: Sequence[Any] | None = None,
    num_classes: int | None = None,
    name: str = "own",
) -> Dataset:
    """Returns a data set for ``zo_fl.run``.

    Pixels are normalised by the channel means and deviations of the training set.

    Args:
      x_train: images ``u8`` in [0, 255], or ``f32`` on any scale; ``[N, H, W, c]`` or
        ``[N, H, W]``.
      y_train: integer labels ``[N]``, from 0 on.
      x_test: images ``[M, ...]`` of the same shape and dtype.
      y_test: labels ``[M]``.
      client_indices: rows of ``x_train`` of each client, of any numbers, instead of a partition
        that is drawn; ``config.data.num_clients`` is then their number.
      num_classes: of the labels; the default is one more than the largest.
      name: for people. A digest of the arrays is added: a run is resumed on the same data alone.

    Raises:
      ConfigError: arrays that do not go together.
    """
    train, test = _examples(x_train, y_train, "train"), _examples(x_test, y_test, "test")
    if train["image"].shape[1:] != test["image"].shape[1:]:
        raise ConfigError(
            f"x_train has images {train['image'].shape[1:]}, x_test {test['image'].shape[1:]}; "
            "they must be of one shape"
        )
    if train["image"].dtype != test["image"].dtype:
        raise ConfigError(
            f"x_train is {train['image'].dtype}, x_test {test['image'].dtype}; they must be of one "
            "dtype, or pixels would be scaled differently"
        )
    largest = 1 + max(int(part["label"].max(initial=0)) for part in (train, test))
    if num_classes is not None and num_classes < largest:
        raise ConfigError(f"num_classes is {num_classes}, and there is a label {largest - 1}")
    held = None if client_indices is None else _rows(client_indices, len(train["label"]))
    mean, std = _statistics(train["image"])
    digest = _digest(train, test, held or ())
    return Dataset(f"{name}:{digest}", train, test, num_classes or largest, mean, std, held)


def _examples(images: Any, labels: Any, split: str) -> dict[str, np.ndarray]:
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or len(images) == 0:
        raise ConfigError(
            f"x_{split} has shape {images.shape}; allowed: [N, H, W, c] or [N, H, W], N above 0"
        )
    if np.issubdtype(images.dtype, np.floating):
        images = images.astype(np.float32, copy=False)
    elif images.dtype != np.uint8:
        raise ConfigError(f"x_{split} is {images.dtype}; allowed: uint8 or floating-point")
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ConfigError(
            f"y_{split} is {labels.dtype}{list(labels.shape)}; allowed: integers, one for each of "
            f"the {len(images)} images"
        )
    if labels.min() < 0:
        raise ConfigError(f"y_{split} has a label {labels.min()}; labels start from 0")
    return {"image": images, "label": labels.astype(np.int32)}


def _rows(client_indices: Sequence[Any], count: int) -> tuple[np.ndarray, ...]:
    held = tuple(np.asarray(rows) for rows in client_indices)
    for client, rows in enumerate(held):
        if rows.ndim != 1 or not len(rows) or not np.issubdtype(rows.dtype, np.integer):
            raise ConfigError(
                f"client_indices[{client}] is {rows.dtype}{list(rows.shape)}; allowed: at least "
                "one integer"
            )
        if rows.min() < 0 or rows.max() >= count:
            raise ConfigError(
                f"client_indices[{client}] has row {rows.min() if rows.min() < 0 else rows.max()}; "
                f"allowed: 0 to {count - 1}"
            )
    if not held:
        raise ConfigError("client_indices is empty; allowed: rows of at least one client")
    return tuple(rows.astype(np.int32) for rows in held)


def _statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns channel means and deviations; in [0, 1] of ``u8`` images. Constant channels: 1."""
    white = 255.0 if images.dtype == np.uint8 else 1.0
    mean = images.mean((0, 1, 2), dtype=np.float64) / white
    std = images.std((0, 1, 2), dtype=np.float64) / white
    return mean.astype(np.float32), np.where(std > 0, std, 1.0).astype(np.float32)


def _digest(train: dict, test: dict, held: Sequence[np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=6)
    for array in (*train.values(), *test.values(), *held):
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
