"""Data sets prepared by TFDS, decoded into the cache without TensorFlow.

TFDS 4.9.10 reads array_record files with no TensorFlow installed; its tfrecord files it does not.
TFDS is imported only when something must be decoded: a cached data set loads without it.

    D/<name>/[<config>/]<version>/  --decode once-->  cache entry  --memory map-->  arrays
"""

import json
import os
import pathlib
import re
from typing import Any

import numpy as np

from zo_fl.data import cache, decode, progress
from zo_fl.engine.errors import ConfigError

_NAME = re.compile(r"(?P<path>\w[\w.-]*(/\w[\w.-]*)?)(:(?P<version>\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")

DECODED = "decoded"  # a cache entry in a set's own folder, instead of what it was decoded from


def default_data_dir() -> str:
    """Returns ``$TFDS_DATA_DIR``, else TFDS's own default, ``~/tensorflow_datasets``."""
    return os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"


def versions(folder: pathlib.Path) -> list[str]:
    """Returns the versions of one set that lie prepared in its folder, in any form."""
    if not folder.is_dir():
        return []
    return [
        path.name
        for path in folder.iterdir()
        if _VERSION.fullmatch(path.name) and (path / "dataset_info.json").is_file()
    ]


def find(name: str, data_dir: str) -> pathlib.Path:
    """Returns the folder of a prepared data set, its highest version unless the name has one.

    Args:
      name: ``set``, ``set/config``, either with ``:1.2.3`` behind.
      data_dir: the folder that holds the sets.

    Raises:
      ConfigError: no such set there, or not in array_record form.
    """
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise ConfigError(
            f"config.data.name={name!r} is not a data set name; allowed: cifar10_sample, "
            "synthetic, or a TFDS name such as cifar10, imagenet_resized/32x32, cifar10:3.0.2"
        )
    root = pathlib.Path(data_dir).expanduser()
    there = versions(root / parts["path"])
    wanted = parts["version"] or max(there, key=_version_key, default="")
    folder = root / parts["path"] / wanted
    if wanted not in there:
        raise ConfigError(
            f"config.data.name={name!r} was not found in config.data.data_dir={data_dir!r} "
            f"({_contents(root)}); prepare it with: python -m "
            f"zo_fl.experiments.prepare_data --dataset={parts['path']} --data_dir={data_dir}"
        )
    file_format = _read_info(folder).get("fileFormat", "tfrecord")
    if file_format != "array_record":
        raise ConfigError(
            f"config.data.name={name!r} lies in {folder} as {file_format}; only array_record is "
            "read: prepare it in another config.data.data_dir with file_format='array_record'"
        )
    return folder


def load(
    folder: pathlib.Path, name: str, verify: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the arrays of a prepared data set and its facts, decoding it on first use.

    Args:
      folder: where the set lies, from ``find``.
      name: the set's name, for messages and the cache's key.
      verify: whether to compare the sums of all that is cached; see ``cache.read``.

    Returns:
      ``(arrays, meta)``. Arrays, memory-mapped: ``train_images`` ``u8[N, H, W, c]``,
      ``train_labels`` ``i32[N]``, ``test_images`` ``u8[M, H, W, c]``, ``test_labels`` ``i32[M]``.
      Meta: ``num_classes``, and ``mean`` and ``std``, each ``c`` floats, of the training pixels in
      [0, 1].

    Raises:
      ConfigError: the set is unreadable, or is no set of images of one size with class labels.
    """
    if (folder / DECODED).is_dir():
        return cache.read_entry(folder / DECODED, verify)
    key = _key(folder, name)
    found = cache.read(key, verify)
    if found is None:
        _decode_into_cache(folder, name, key)
        found = cache.read(key)
    if found is None:
        raise ConfigError(f"the cache entry {cache.root() / key} cannot be read; delete it")
    return found


def entry(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Returns the folder of a set's arrays, which are decoded if they are not yet; see ``load``."""
    load(folder, name, verify=True)
    decoded = folder / DECODED
    return decoded if decoded.is_dir() else cache.root() / _key(folder, name)


def _key(folder: pathlib.Path, name: str) -> str:
    """Returns the name of a set's cache entry."""
    short = re.sub(r"\W+", "_", name.split(":")[0])
    return "-".join([short, folder.name, cache.fingerprint(folder)])


def _version_key(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]


def _contents(root: pathlib.Path) -> str:
    """Returns what there is in a data folder, in words, for an error line."""
    if not root.is_dir():
        return "that folder does not exist"
    candidates = [path for path in sorted(root.iterdir()) if path.is_dir()]
    candidates += [child for path in candidates for child in sorted(path.iterdir())]
    found = [str(path.relative_to(root)) for path in candidates if versions(path)]
    return f"found there: {', '.join(found)}" if found else "no prepared data set is there"


def _read_info(folder: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "dataset_info.json").read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"config.data.data_dir: cannot read {folder / 'dataset_info.json'} ({error})"
        ) from error


def _decode_into_cache(folder: pathlib.Path, name: str, key: str) -> None:
    sources, shape, num_classes = _open(folder, name)
    count = sum(len(source) for source in sources.values())
    with cache.writing(key, count * (int(np.prod(shape)) + 4)) as temporary:
        with progress.bar(f"decoding {name}: {count} images, once", count) as advance:
            try:
                for split, source in sources.items():
                    decode.decode_split(source, temporary, split, shape, num_classes, advance)
            except ConfigError:
                raise
            except Exception as error:  # a damaged file: whatever its parser raises
                raise _unreadable(folder, error) from error
        mean, std = decode.channel_statistics(temporary / "train_images.npy")
        cache.write_meta(
            temporary,
            [f"{split}_{kind}" for split in sources for kind in ("images", "labels")],
            source=str(folder),
            num_classes=num_classes,
            mean=mean.tolist(),
            std=std.tolist(),
        )


def _open(folder: pathlib.Path, name: str) -> tuple[dict[str, Any], tuple[int, ...], int]:
    """Returns data sources of encoded images by split, the images' shape and the class count."""
    import tensorflow_datasets as tfds

    try:
        builder: Any = tfds.builder_from_directory(str(folder))
        splits, features = set(builder.info.splits), builder.info.features
        wanted = {"train": "train", "test": "test" if "test" in splits else "validation"}
        _check_features(features, splits, wanted, name)
        # Left encoded here: TFDS decodes in one thread, one image at a time.
        decoders = {"image": tfds.decode.SkipDecoding()}
        sources = {
            split: builder.as_data_source(split=stored, decoders=decoders)
            for split, stored in wanted.items()
        }
        shape = tuple(features["image"].shape)
        if None in shape:
            first = decode.decode_image(sources["train"][0]["image"], shape[-1] or 3)
            shape = first.shape
    except ConfigError:
        raise
    except Exception as error:  # TFDS raises whatever its parsers and file systems raise
        raise _unreadable(folder, error) from error
    return sources, shape, int(features["label"].num_classes)


def _unreadable(folder: pathlib.Path, error: Exception) -> ConfigError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ConfigError(f"config.data.data_dir: cannot read {folder}: {reason}; prepare it anew")


def _check_features(features: Any, splits: set[str], wanted: dict[str, str], name: str) -> None:
    prefix = f"config.data.name={name!r} cannot be used: "
    missing = {"image", "label"} - set(features)
    if missing:
        raise ConfigError(
            f"{prefix}it needs the features image and label and has {', '.join(sorted(features))}"
        )
    if not set(wanted.values()) <= splits:
        raise ConfigError(
            f"{prefix}it needs the splits train and test (or validation) and has "
            f"{', '.join(sorted(splits)) or 'none'}"
        )
    if len(features["image"].shape) != 3 or np.dtype(features["image"].np_dtype) != np.uint8:
        raise ConfigError(
            f"{prefix}images must be uint8 [H, W, c] and are "
            f"{np.dtype(features['image'].np_dtype).name} {list(features['image'].shape)}"
        )
    if not getattr(features["label"], "num_classes", None):
        raise ConfigError(
            f"{prefix}its label is {features['label']}, not a ClassLabel with classes"
        )
