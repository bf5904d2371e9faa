"""Data sets from a user's own arrays: they are checked, and looked at for common mistakes."""

import functools
import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from zo_fl.data import decode
from zo_fl.engine.fields import ConfigError
from zo_fl.engine.types import Dataset

FAR = 50  # times as large or small, pixels are likely on another scale
_MOST_CLASSES = 10**6
_OUTLIER = 1e4  # times the usual size of a pixel
_SMALLEST = float(np.finfo(np.float32).tiny)  # what is smaller is 0 on some devices


def dataset(
    x_train: Any,
    y_train: Any,
    x_test: Any,
    y_test: Any,
    *,
    client_indices: Sequence[Any] | np.ndarray | None = None,
    num_classes: int | None = None,
    mean: Any = None,
    std: Any = None,
    name: str = "own",
) -> Dataset:
    """Returns a data set for ``zo_fl.run``.

    Args:
      x_train: images ``u8`` in [0, 255], or ``f32`` on any scale; ``[N, H, W, c]`` or
        ``[N, H, W]``.
      y_train: integer labels ``[N]`` from 0 on.
      x_test: images ``[M, ...]`` of the same shape and dtype.
      y_test: labels ``[M]``.
      client_indices: for each client its rows of ``x_train``, any number of them. No partition is
        drawn then, and ``config.data.num_clients`` is ignored.
      num_classes: number of classes; by default one more than the largest label.
      mean: ``[c]``, or one number, that is subtracted from the pixels of each channel, ``u8`` ones
        divided by 255 first. By default the training set's, which everyone's images decide: where
        single images are to be hidden, give numbers that are known anyway.
      std: likewise, by which they are divided.
      name: name for people. A digest of the arrays is added to it, so that a run is resumed only on
        the same data.

    Raises:
      ConfigError: the arrays do not fit together.
    """
    train, test = _examples(x_train, y_train, "train"), _examples(x_test, y_test, "test")
    kinds = [f"{part['image'].dtype}{part['image'].shape[1:]}" for part in (train, test)]
    if kinds[0] != kinds[1]:
        raise ConfigError(
            f"x_train has images {kinds[0]}, x_test {kinds[1]}; allowed: one shape and one dtype"
        )
    largest = 1 + max(int(part["label"].max(initial=0)) for part in (train, test))
    if num_classes is not None and not (
        isinstance(num_classes, int | np.integer) and largest <= num_classes <= _MOST_CLASSES
    ):
        raise ConfigError(
            f"num_classes={num_classes!r} and there is a label {largest - 1}; allowed: an integer "
            f"from {largest} to {_MOST_CLASSES:,}"
        )
    rows = None if client_indices is None else _rows(client_indices, len(train["label"]))
    _warn_of_shape(train["image"].shape)
    _warn_of_classes(train["label"], largest if num_classes is None else 0)
    _warn_of_scale(train["image"], test["image"])
    channels = train["image"].shape[-1]
    mean, std = _of_channels("mean", mean, channels), _of_channels("std", std, channels)
    given = [one for one in (mean, std) if one is not None]
    of_clients = () if rows is None else rows
    digest = _digest([*train.values(), *test.values(), *of_clients, *given])
    if len(given) < 2:
        found = _statistics(train["image"])
        mean, std = (found[0] if mean is None else mean), (found[1] if std is None else std)
    return Dataset(f"{name}:{digest}", train, test, int(num_classes or largest), mean, std, rows)


def as_array(name: str, given: Any) -> np.ndarray:
    """Returns what a user gave as an array, in this machine's order of bytes.

    Raises:
      ConfigError: it is none, or some of it is masked.
    """
    try:
        found = np.asarray(given)
    except (TypeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"{name} is no array ({first}); allowed: numbers of one shape") from None
    if np.ma.is_masked(given):
        raise ConfigError(f"{name} has masked values; allowed: arrays without a mask")
    return found.astype(found.dtype.newbyteorder("="), copy=False)


def _of_channels(name: str, value: Any, channels: int) -> np.ndarray | None:
    """Returns a number for each channel, ``f32[c]``; None for None."""
    if value is None:
        return None
    given = as_array(name, value)
    with np.errstate(over="ignore"):  # it is said below
        found = given.astype(np.float32) if given.dtype.kind in "iuf" else np.full((), np.nan)
    least = _SMALLEST if name == "std" else -np.inf
    if found.shape not in ((), (channels,)) or not ((found > least) & np.isfinite(found)).all():
        above = " above 0" if name == "std" else ""
        raise ConfigError(f"{name}={value!r}; allowed: one number{above}, or {channels} of them")
    return np.broadcast_to(found, channels).copy()


def _statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and deviation of each channel, ``f32[c]``; of pixels in [0, 1] if ``u8``."""
    if images.dtype == np.uint8:
        return decode.channel_statistics(images)
    mean = images.mean((0, 1, 2), dtype=np.float64)
    std = images.std((0, 1, 2), dtype=np.float64)
    # Images are divided by the deviation, so a constant channel has 1.
    return mean.astype(np.float32), np.where(std > _SMALLEST, std, 1.0).astype(np.float32)


def _digest(arrays: Iterable[np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=6)
    kind = functools.cache(lambda dtype, shape: f"{dtype}{shape}".encode())  # a million are alike
    for array in arrays:
        digest.update(kind(array.dtype, array.shape))
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _examples(images: Any, labels: Any, split: str) -> dict[str, np.ndarray]:
    """Returns checked images ``u8`` or ``f32[N, H, W, c]`` and labels ``i32[N]``."""
    images, labels = as_array(f"x_{split}", images), as_array(f"y_{split}", labels)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.size == 0:
        raise ConfigError(
            f"x_{split} has shape {images.shape}; allowed: [N, H, W, c] or [N, H, W], none of "
            "them 0"
        )
    if np.issubdtype(images.dtype, np.floating):
        with np.errstate(over="ignore"):  # it is said below
            images = images.astype(np.float32, copy=False)
        _check_pixels(images, split)
    elif images.dtype != np.uint8:
        raise ConfigError(f"x_{split} is {images.dtype}; allowed: uint8 or floating-point")
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise ConfigError(
            f"y_{split} is {labels.dtype}{list(labels.shape)}; allowed: one integer for each "
            f"of the {len(images)} images"
        )
    if labels.min() < 0:
        raise ConfigError(f"y_{split} has a label {labels.min()}; allowed: labels from 0 on")
    if labels.max() >= _MOST_CLASSES:
        raise ConfigError(
            f"y_{split} has a label {labels.max()}; allowed: below {_MOST_CLASSES:,}; number the "
            "classes from 0 on"
        )
    return {"image": images, "label": labels.astype(np.int32)}


def _check_pixels(images: np.ndarray, split: str) -> None:
    """Refuses pixels that are not finite, and warns of some that are far from all others."""
    largest = np.array([np.abs(image).max(initial=0) for image in images])  # NaN stays NaN
    bad = np.flatnonzero(~np.isfinite(largest))
    if len(bad):
        raise ConfigError(
            f"x_{split} has {len(bad)} images with pixels that are NaN or infinite in float32, the "
            f"first is image {bad[0]}; allowed: finite pixels"
        )
    usual = np.median(largest)
    if largest.max() > _OUTLIER * usual > 0:
        warnings.warn(
            f"x_{split} has a pixel of size {largest.max():g} in image {largest.argmax()}; half of "
            f"the images have none above {usual:g}",
            stacklevel=4,
        )


def _warn_of_shape(shape: tuple[int, ...]) -> None:
    if shape[1] in (1, 3, 4) and shape[3] > 4:
        warnings.warn(
            f"images of {shape[1]} x {shape[2]} pixels and {shape[3]} channels: axes are "
            "(N, H, W, c), and these look like (N, c, H, W); np.moveaxis(x, 1, -1) moves them",
            stacklevel=3,
        )


def _warn_of_classes(labels: np.ndarray, num_classes: int) -> None:
    present = len(np.unique(labels))
    if num_classes > present:
        warnings.warn(
            f"labels reach {num_classes - 1}, and {present} of these {num_classes} classes have "
            f"examples; number them from 0 on, or say num_classes={num_classes}",
            stacklevel=3,
        )


def _warn_of_scale(train: np.ndarray, test: np.ndarray) -> None:
    some = [images[:1000].astype(np.float32) for images in (train, test)]
    usual = [np.median(np.abs(images).max((1, 2, 3))) for images in some]
    if min(usual) * FAR < max(usual):
        warnings.warn(
            f"half of the images of x_train have no pixel of a size above {usual[0]:g}, of x_test "
            f"above {usual[1]:g}; give both on one scale",
            stacklevel=3,
        )


def _rows(
    client_indices: Sequence[Any] | np.ndarray, count: int
) -> Sequence[np.ndarray] | np.ndarray:
    """Returns for each client its checked rows ``i32[n]``, in [0, count); a table if it can be."""
    if isinstance(client_indices, Mapping) or not hasattr(client_indices, "__len__"):
        raise ConfigError(
            f"client_indices is a {type(client_indices).__name__}; allowed: a list with the rows "
            "of each client"
        )
    rows_of_clients = [as_array("client_indices", rows) for rows in client_indices]
    if not rows_of_clients:
        raise ConfigError("client_indices is empty; allowed: rows of at least one client")
    for client, rows in enumerate(rows_of_clients):
        if rows.ndim != 1 or not len(rows) or rows.dtype.kind not in "iu":
            raise ConfigError(
                f"client_indices[{client}] is {rows.dtype}{list(rows.shape)}; allowed: at least "
                "one integer; np.flatnonzero makes rows of a mask"
            )
    every = np.concatenate([rows.astype(np.int64) for rows in rows_of_clients])
    ends = np.cumsum([len(rows) for rows in rows_of_clients])
    outside = np.flatnonzero((every < 0) | (every >= count))
    if len(outside):
        client = np.searchsorted(ends, outside[0], side="right")
        raise ConfigError(
            f"client_indices[{client}] has row {every[outside[0]]}; allowed: 0 to {count - 1}"
        )
    held = np.bincount(every, minlength=count)
    if held.max() > 1:
        raise ConfigError(
            f"client_indices has row {held.argmax()} {held.max()} times; allowed: each row once, "
            "for one client"
        )
    every, size = every.astype(np.int32), len(rows_of_clients[0])
    if all(len(rows) == size for rows in rows_of_clients):
        return every.reshape(-1, size)
    return np.split(every, ends[:-1])
