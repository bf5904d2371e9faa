"""Data sets by name: the pixels that went in come out, or an error of one line."""

import json
import shutil

import numpy as np
import pytest

from tests import commands
from tests.data import fakes
from zo_fl.data import cache, datasets, decode
from zo_fl.engine.fields import ConfigError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv(cache.ENV, str(folder))
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of sets with ``tiny``, prepared once."""
    root = tmp_path_factory.mktemp("sets")
    fakes.prepare(root, {"train": fakes.rows(6), "test": fakes.rows(3, seed=1)})
    return root


@pytest.fixture
def tiny(prepared, tmp_path):
    """A copy of the prepared set ``tiny`` in ``tmp_path``, to be changed."""
    shutil.copytree(prepared / "tiny", tmp_path / "tiny")
    return tmp_path / "tiny" / "1.0.0"


def error(name, data_dir):
    with pytest.raises(ConfigError) as caught:
        datasets.load(name, str(data_dir))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def pairs(images, labels):
    return sorted((image.tobytes(), int(k)) for image, k in zip(images, labels, strict=True))


@pytest.mark.parametrize(
    ("test_split", "shape", "declared"),
    (("validation", (8, 6, 1), (8, 6, 1)), ("test", (8, 6, 3), (None, None, 3))),
)
def test_a_tfds_set_with_images_of_one_size_loads_pixel_for_pixel(
    tmp_path, test_split, shape, declared
):
    train, test = fakes.rows(12, shape=shape), fakes.rows(5, seed=1, shape=shape)
    fakes.prepare(tmp_path, {"train": train, test_split: test}, shape=declared)
    loaded = datasets.load("tiny", str(tmp_path))
    assert loaded.train["image"].shape == (12, *shape) and loaded.train["image"].dtype == np.uint8
    assert loaded.train["label"].dtype == np.int32 and loaded.num_classes == 3
    for found, rows in ((loaded.train, train), (loaded.test, test)):
        assert pairs(found["image"], found["label"]) == pairs(*zip(*rows, strict=True))
    pixels = np.stack([image for image, _ in train]) / 255
    np.testing.assert_allclose(loaded.mean, pixels.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(loaded.std, pixels.std((0, 1, 2)), rtol=1e-5)


def test_rows_follow_the_id_feature(tmp_path):
    train = fakes.rows(40)
    fakes.prepare(tmp_path, {"train": train, "test": fakes.rows(3)}, with_id=True)
    loaded = datasets.load("tiny", str(tmp_path))
    np.testing.assert_array_equal(loaded.train["image"], [image for image, _ in train])


def test_a_constant_channel_has_deviation_one(tmp_path):
    np.save(tmp_path / "x.npy", np.full((3, 2, 2, 1), 51, np.uint8))
    mean, std = decode.channel_statistics(np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert mean == pytest.approx(0.2) and std == 1


@pytest.mark.slow
def test_a_cached_set_loads_without_importing_tfds(prepared):
    first = datasets.load("tiny", str(prepared))
    code = (
        "import sys; from zo_fl.data import datasets;"
        f"d = datasets.load('tiny', {str(prepared)!r});"
        "assert 'tensorflow_datasets' not in sys.modules;"
        "print(int(d.train['image'].sum()))"
    )
    done = commands.run("-c", code)
    assert int(done.stdout) == first.train["image"].sum() and done.stderr == ""


def test_a_damaged_cache_entry_and_a_changed_source_are_decoded_again(
    tmp_path, tiny, own_cache, capfd
):
    before = np.array(datasets.load("tiny", str(tmp_path)).train["image"])
    (entry,) = own_cache.iterdir()
    (entry / "train_images.npy").write_bytes(b"short")
    np.testing.assert_array_equal(datasets.load("tiny", str(tmp_path)).train["image"], before)
    assert "is damaged" in capfd.readouterr().err and list(own_cache.iterdir()) == [entry]
    (tiny / "dataset_info.json").touch()
    datasets.load("tiny", str(tmp_path))
    assert len(list(own_cache.iterdir())) == 2


def test_an_interrupted_decoding_leaves_nothing_behind(prepared, own_cache, monkeypatch):
    for failure, said in ((KeyboardInterrupt, KeyboardInterrupt), (RuntimeError, ConfigError)):

        def fail(*_, failure=failure):
            raise failure("stop")

        monkeypatch.setattr(decode, "decode_image", fail)
        with pytest.raises(said):
            datasets.load("tiny", str(prepared))
        assert list(own_cache.iterdir()) == []


def test_a_missing_set_is_said_with_how_to_prepare_it(prepared, tmp_path):
    for name, command in (
        ("cifar10", "experiments.prepare_data --dataset=cifar10 --data_dir="),
        ("tiny:2.0.0", "tfds build --file_format=array_record --data_dir="),
    ):
        for data_dir in (prepared, tmp_path / "nowhere"):
            message = error(name, data_dir)
            assert f"config.data.name={name!r} was not found" in message
            assert f"config.data.data_dir={str(data_dir)!r}" in message and command in message


def test_a_name_that_is_no_name_is_refused(tmp_path):
    for name in ("", "../x", "a/b/c", "a b", "/etc"):
        assert "is not a data set name" in error(name, tmp_path)


def test_without_data_dir_the_environment_variable_counts(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    assert len(datasets.load("tiny:1.0.0", "").train["image"]) == 6


def test_tfrecord_files_are_refused_by_name(tmp_path, tiny):
    path = tiny / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fileFormat": "tfrecord"}))
    assert "as tfrecord; allowed: array_record" in error("tiny", tmp_path)


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json", "train.array_record"])
def test_a_damaged_source_is_one_line(tmp_path, tiny, own_cache, file):
    (path,) = (path for path in tiny.iterdir() if file in path.name)
    path.write_bytes(b"nonsense")
    assert "config.data.name" in error("tiny", tmp_path) and list(own_cache.iterdir()) == []


@pytest.mark.parametrize(
    ("train", "test", "message"),
    (
        (fakes.rows(3), None, "the splits train and test"),
        (fakes.rows(3) + fakes.rows(1, shape=(4, 6, 3)), fakes.rows(3), "the train images have"),
        (fakes.rows(3), [(fakes.pictures(1)[0], -1)], "the test labels lie in [-1, -1]"),
    ),
)
def test_a_set_that_cannot_be_used_is_one_line(tmp_path, own_cache, train, test, message):
    splits = {"train": train} if test is None else {"train": train, "test": test}
    fakes.prepare(tmp_path, splits, shape=(None, None, 3))
    assert message in error("tiny", tmp_path) and list(own_cache.iterdir()) == []


def test_the_synthetic_set_is_balanced_deterministic_and_learnable():
    data = datasets.load("synthetic")
    assert data.train["image"].shape == (800, 8, 8, 3) and data.test["image"].shape[0] == 200
    assert (np.bincount(data.train["label"]) == 80).all()
    centres = np.stack([data.train["image"][data.train["label"] == k].mean(0) for k in range(10)])
    distances = (data.test["image"][:, None].astype(float) - centres) ** 2
    nearest = distances.sum((2, 3, 4)).argmin(1)
    assert (nearest == data.test["label"]).mean() > 0.9
    datasets._synthetic.cache_clear()
    np.testing.assert_array_equal(datasets.load("synthetic").train["image"], data.train["image"])


def test_the_sample_is_balanced_and_has_the_statistics_of_cifar10():
    data = datasets.load("cifar10_sample")
    facts = json.loads(datasets.SAMPLE.with_suffix(".json").read_text())
    for split, per_class, rows in (("train", 250, 50_000), ("test", 100, 10_000)):
        examples, indices = getattr(data, split), facts[split]["indices"]
        assert examples["image"].shape == (10 * per_class, 32, 32, 3)
        assert examples["image"].dtype == np.uint8
        assert (np.bincount(examples["label"]) == per_class).all()
        assert len(set(indices)) == 10 * per_class and max(indices) < rows
    pixels = data.train["image"] / 255
    np.testing.assert_allclose(pixels.mean((0, 1, 2)), data.mean, atol=0.01)
    np.testing.assert_allclose(pixels.std((0, 1, 2)), data.std, atol=0.01)


def test_a_damaged_sample_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        datasets.load_sample(tmp_path / "none.webp")
    (tmp_path / "bad.webp").write_bytes(b"nonsense")
    (tmp_path / "bad.json").write_text('{"train": {"labels": []}, "test": {"labels": []}}')
    with pytest.raises(ConfigError, match="cannot be read"):
        datasets.load_sample(tmp_path / "bad.webp")


def test_a_misspelt_set_that_comes_along_is_named(tmp_path):
    with pytest.raises(ConfigError, match="did you mean synthetic\\? Otherwise prepare it with"):
        datasets.load("sinthetic", str(tmp_path))
