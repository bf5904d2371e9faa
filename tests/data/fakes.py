"""Tiny TFDS sets, prepared on the spot in array_record form, as a user's own sets would be."""

import io

import cv2
import numpy as np


def encode(image, extension=".png"):
    """Returns a file object with the image encoded; TFDS would encode an array by TensorFlow."""
    pixels = image[..., ::-1] if image.shape[-1] == 3 else image
    return io.BytesIO(cv2.imencode(extension, np.ascontiguousarray(pixels))[1].tobytes())


def pictures(count, shape=(8, 6, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def builder_class(splits, shape=(8, 6, 3), num_classes=3, with_id=False, extra=None):
    """Returns a TFDS builder class ``Tiny``; splits: ``{name: [(image, label), ...]}``."""
    import tensorflow_datasets as tfds

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=shape),
                "label": tfds.features.ClassLabel(num_classes=num_classes),
            }
            if with_id:
                features["id"] = tfds.features.Text()
            features |= extra or {}
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {name: self._generate_examples(rows) for name, rows in splits.items()}

        def _generate_examples(self, rows):
            for index, (image, label) in enumerate(rows):
                example = {"image": encode(image), "label": label}
                if with_id:
                    example["id"] = f"{index:05d}"
                yield index, example

    return Tiny


def prepare(data_dir, splits, file_format="array_record", **kwargs):
    """Writes the set ``tiny`` into ``data_dir``; returns its folder."""
    builder = builder_class(splits, **kwargs)(data_dir=str(data_dir))
    builder.download_and_prepare(file_format=file_format)
    return data_dir / "tiny" / "1.0.0"


def rows(count, num_classes=3, seed=0, shape=(8, 6, 3)):
    """Returns ``count`` pairs of image and label."""
    return [(image, i % num_classes) for i, image in enumerate(pictures(count, shape, seed))]
