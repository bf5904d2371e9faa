"""Data sets that TFDS has prepared, decoded into the cache once, without TensorFlow.

    data_dir/<name>/[<config>/]<version>/  --decode-->  cache entry  --memory map-->  arrays

TFDS reads array_record files without TensorFlow; its tfrecord files it does not. TFDS is imported
only to decode, so a cached data set loads without it.
"""

import difflib
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zo_fl.data import cache, decode, progress
from zo_fl.engine.fields import ConfigError, path_of

_NAME = re.compile(r"(?P<path>\w[\w.-]*(/\w[\w.-]*)?)(:(?P<version>\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")

DECODED = "decoded"  # a cache entry that lies in the folder of a packed data set


def folder_of_sets(data_dir: str | None) -> Path:
    """Returns ``data_dir``; if it is empty, ``$TFDS_DATA_DIR`` or ``~/tensorflow_datasets``."""
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return path_of(chosen)


def versions(folder: Path) -> list[str]:
    """Returns the versions of a data set that lie in its folder, the highest one last."""
    found = [path.parent.name for path in folder.glob("*/dataset_info.json")]
    numbered = [version for version in found if _VERSION.fullmatch(version)]
    return sorted(numbered, key=lambda version: [int(number) for number in version.split(".")])


def find(name: str, data_dir: str | None, others: Sequence[str] = ()) -> Path:
    """Returns the folder of a prepared data set.

    Args:
      name: ``set`` or ``set/config`` for the highest version, or either with ``:1.2.3``.
      data_dir: folder of the data sets, see ``folder_of_sets``.
      others: names that are no TFDS sets and may be meant.

    Raises:
      ConfigError: the data set is not there, or is not in array_record form.
    """
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise ConfigError(
            f"config.data.name={name!r} is not a data set name; allowed: one that "
            "zo-fl prepare_data lists, or a TFDS name such as cifar10:3.0.2, imagenet_resized/32x32"
        )
    root = folder_of_sets(data_dir)
    there = versions(root / parts["path"])
    if not there or parts["version"] not in (None, *there):
        near = difflib.get_close_matches(name, others, n=1)
        hint = f"did you mean {near[0]}? Otherwise " if near else ""
        raise ConfigError(
            f"config.data.name={name!r} was not found in config.data.data_dir={str(root)!r}; "
            f"{hint}prepare it with: {how_to_prepare(parts['path'], root)}"
        )
    folder = root / parts["path"] / (parts["version"] or there[-1])
    try:
        info = json.loads((folder / "dataset_info.json").read_text())
    except (OSError, ValueError) as error:
        raise _unusable(folder, error) from error
    if (found := info.get("fileFormat", "tfrecord")) != "array_record":
        raise ConfigError(
            f"config.data.name={name!r} lies in {folder} as {found}; allowed: array_record; "
            "prepare it in another config.data.data_dir with file_format='array_record'"
        )
    return folder


def how_to_prepare(name: str, root: Path) -> str:
    """Returns the command that prepares a data set. TFDS itself needs TensorFlow to do so."""
    if name == "cifar10":
        return f"python -m zo_fl.experiments.prepare_data --dataset={name} --data_dir={root}"
    return f"tfds build --file_format=array_record --data_dir={root} {name}"


def load(folder: Path, name: str) -> cache.Entry:
    """Returns the arrays and the facts of a prepared data set, which is decoded on first use.

    Returns:
      ``(arrays, facts)``. Arrays, memory-mapped: ``train_images`` ``u8[N, H, W, c]``,
      ``train_labels`` ``i32[N]``, ``test_images`` ``u8[M, H, W, c]``, ``test_labels`` ``i32[M]``.
      Facts: ``num_classes``, and ``mean`` and ``std`` of the training pixels in [0, 1], ``c``
      floats each.

    Raises:
      ConfigError: the data set is unreadable, or does not consist of images of one size with class
        labels.
    """
    return cache.read_entry(folder / DECODED) if _is_packed(folder) else _cached(folder, name)[1]


def entry(folder: Path, name: str) -> Path:
    """Returns the folder of the decoded arrays of a prepared data set."""
    return folder / DECODED if _is_packed(folder) else cache.root() / _cached(folder, name)[0]


def _is_packed(folder: Path) -> bool:
    return (folder / DECODED).is_dir()


def _cached(folder: Path, name: str) -> tuple[str, cache.Entry]:
    """Returns the key and the content of the cache entry of a data set, decoded if need be."""
    short = re.sub(r"\W+", "_", name.split(":")[0])
    key = f"{short}-{folder.name}-{cache.fingerprint(folder)}"
    found = cache.read(key)
    if found is None:
        _decode_into_cache(folder, name, key)
        found = cache.read_entry(cache.root() / key)
    return key, found


def _decode_into_cache(folder: Path, name: str, key: str) -> None:
    try:
        sources, shape, num_classes = _open(folder)
        count = sum(len(source) for source in sources.values())
        with cache.writing(key, count * (math.prod(shape) + 4)) as temporary:
            with progress.bar(f"decoding {name}: {count} images, once", count) as advance:
                for split, source in sources.items():
                    decode.decode_split(source, temporary, split, shape, num_classes, advance)
            mean, std = decode.channel_statistics(
                np.load(temporary / "train_images.npy", mmap_mode="r")
            )
            cache.write_meta(
                temporary,
                [f"{split}_{kind}" for split in sources for kind in ("images", "labels")],
                source=str(folder),
                num_classes=num_classes,
                mean=mean.tolist(),
                std=std.tolist(),
            )
    except ConfigError:
        raise
    except Exception as error:  # parsers and file systems of TFDS can raise anything
        raise _unusable(folder, error) from error


def _open(folder: Path) -> tuple[dict[str, Any], tuple[int, ...], int]:
    """Returns data sources of encoded images by split, the images' shape and the class count."""
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(str(folder))
    features = builder.info.features
    if (dtype := np.dtype(features["image"].np_dtype)) != np.uint8:
        raise ValueError(f"its images are {dtype}")
    # Images stay encoded here: TFDS would decode them one by one in a single thread.
    decoders = {"image": tfds.decode.SkipDecoding()}
    test = "test" if "test" in builder.info.splits else "validation"
    sources = {
        split: builder.as_data_source(split=stored, decoders=decoders)
        for split, stored in (("train", "train"), ("test", test))
    }
    height, width, channels = features["image"].shape
    if height is None or width is None or channels is None:
        first = decode.decode_image(sources["train"][0]["image"], channels or 3)
        height, width, channels = first.shape
    return sources, (height, width, channels), int(features["label"].num_classes)


def _unusable(folder: Path, error: Exception) -> ConfigError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ConfigError(
        f"config.data.name: the data set in {folder} cannot be read ({reason}); allowed: TFDS sets "
        "with the splits train and test (or validation), an image of type uint8 [H, W, c] and a "
        "label of type ClassLabel; if it is one, prepare it again"
    )
