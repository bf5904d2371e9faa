"""Tiny TFDS sets in array_record form, like data sets of a user."""

import io

import cv2
import numpy as np


def pictures(count, shape=(8, 6, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def rows(count, num_classes=3, seed=0, shape=(8, 6, 3)):
    """Returns ``count`` pairs of image and label."""
    return [(image, i % num_classes) for i, image in enumerate(pictures(count, shape, seed))]


def prepare(data_dir, splits, shape=(8, 6, 3), num_classes=3, with_id=False):
    """Writes the set ``tiny``, splits ``{name: rows}``, into a folder; returns the set's folder."""
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
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {name: self._generate_examples(rows) for name, rows in splits.items()}

        def _generate_examples(self, rows):
            for index, (image, label) in enumerate(rows):
                # A file, because TFDS encodes arrays with TensorFlow.
                pixels = image[..., ::-1] if image.shape[-1] == 3 else image
                png = cv2.imencode(".png", np.ascontiguousarray(pixels))[1].tobytes()
                example = {"image": io.BytesIO(png), "label": label}
                yield index, example | ({"id": f"{index:05d}"} if with_id else {})

    builder = Tiny(data_dir=str(data_dir))
    builder.download_and_prepare(file_format="array_record")
    return data_dir / "tiny" / "1.0.0"
