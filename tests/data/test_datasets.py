import json
import os
import re
import subprocess
import sys
import threading

import chex
import numpy as np
import pytest

from tests.data import fakes
from zo_fl.data import cache, datasets, decode, sample
from zo_fl.engine.errors import ConfigError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv(cache.ENV, str(folder))
    return folder


def _leftovers(folder):
    return [path.name for path in folder.iterdir()] if folder.exists() else []


def _error(name, data_dir):
    with pytest.raises(ConfigError) as caught:
        datasets.load(name, str(data_dir))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _pairs(images, labels):
    return sorted(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("test_split", ["test", "validation"])
def test_any_tfds_set_with_images_of_one_size_loads_pixel_for_pixel(tmp_path, test_split):
    train, test = fakes.rows(12), fakes.rows(5, seed=1)
    fakes.prepare(tmp_path, {"train": train, test_split: test})
    loaded = datasets.load("tiny", str(tmp_path))
    assert loaded.train["image"].shape == (12, 8, 6, 3) and loaded.train["image"].dtype == np.uint8
    assert loaded.train["label"].dtype == np.int32 and loaded.num_classes == 3
    assert _pairs(loaded.train["image"], loaded.train["label"]) == _pairs(*zip(*train, strict=True))
    assert _pairs(loaded.test["image"], loaded.test["label"]) == _pairs(*zip(*test, strict=True))


def test_rows_follow_the_id_feature(tmp_path):
    train = fakes.rows(40)
    fakes.prepare(tmp_path, {"train": train, "test": train[:2]}, with_id=True)
    loaded = datasets.load("tiny", str(tmp_path))
    np.testing.assert_array_equal(loaded.train["image"], [image for image, _ in train])


def test_grey_images_have_one_channel(tmp_path):
    train = fakes.rows(4, shape=(8, 6, 1))
    fakes.prepare(tmp_path, {"train": train, "test": train}, shape=(8, 6, 1))
    loaded = datasets.load("tiny", str(tmp_path))
    assert loaded.train["image"].shape == (4, 8, 6, 1)
    assert _pairs(loaded.train["image"], loaded.train["label"]) == _pairs(*zip(*train, strict=True))


def test_the_statistics_of_another_set_are_measured_on_its_training_pixels(tmp_path):
    train = fakes.rows(9)
    fakes.prepare(tmp_path, {"train": train, "test": fakes.rows(2, seed=3)})
    loaded = datasets.load("tiny", str(tmp_path))
    pixels = np.stack([image for image, _ in train]) / 255
    np.testing.assert_allclose(loaded.mean, pixels.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(loaded.std, pixels.std((0, 1, 2)), rtol=1e-5)


def test_a_constant_channel_has_deviation_one(tmp_path):
    np.save(tmp_path / "x.npy", np.full((3, 2, 2, 1), 51, np.uint8))
    mean, std = decode.channel_statistics(tmp_path / "x.npy")
    assert mean == pytest.approx(0.2) and std == 1


@pytest.mark.slow
def test_a_cached_set_is_memory_mapped_and_loads_without_importing_tfds(tmp_path):
    fakes.prepare(tmp_path, {"train": fakes.rows(6), "test": fakes.rows(3)})
    first = datasets.load("tiny", str(tmp_path))
    assert isinstance(first.train["image"], np.memmap)
    code = (
        "import sys; from zo_fl.data import datasets;"
        f"d = datasets.load('tiny', {str(tmp_path)!r});"
        "assert 'tensorflow_datasets' not in sys.modules;"
        "print(int(d.train['image'].sum()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == first.train["image"].sum()
    assert "decoding" not in done.stderr


def test_a_changed_source_is_decoded_anew(tmp_path):
    fakes.prepare(tmp_path, {"train": fakes.rows(6), "test": fakes.rows(3)})
    before = datasets.load("tiny", str(tmp_path)).train["image"].copy()
    for file in (tmp_path / "tiny" / "1.0.0").iterdir():
        file.unlink()
    (tmp_path / "tiny" / "1.0.0").rmdir()
    fakes.prepare(tmp_path, {"train": fakes.rows(6, seed=9), "test": fakes.rows(3)})
    assert not np.array_equal(datasets.load("tiny", str(tmp_path)).train["image"], before)


def test_a_damaged_cache_entry_is_written_anew(tmp_path, own_cache):
    fakes.prepare(tmp_path, {"train": fakes.rows(6), "test": fakes.rows(3)})
    before = datasets.load("tiny", str(tmp_path)).train["image"].copy()
    (entry,) = own_cache.iterdir()
    (entry / "train_images.npy").write_bytes(b"short")
    np.testing.assert_array_equal(datasets.load("tiny", str(tmp_path)).train["image"], before)
    assert _leftovers(own_cache) == [entry.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_decoding_leaves_nothing_behind(tmp_path, own_cache, monkeypatch, error):
    fakes.prepare(tmp_path, {"train": fakes.rows(6), "test": fakes.rows(3)})

    def fail(*_):
        raise error("stop")

    with monkeypatch.context() as patched:
        patched.setattr(decode, "decode_image", fail)
        with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else ConfigError):
            datasets.load("tiny", str(tmp_path))
    assert _leftovers(own_cache) == []
    assert len(datasets.load("tiny", str(tmp_path)).train["image"]) == 6


def test_of_two_writers_at_once_one_wins_and_both_read_the_same(own_cache):
    both_ready = threading.Barrier(2)

    def write(value):
        with cache.writing("key", 100) as folder:
            np.save(folder / "x.npy", np.full(4, value))
            cache.write_meta(folder, ["x"], value=value)
            both_ready.wait()

    threads = [threading.Thread(target=write, args=(value,)) for value in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entry = cache.read("key")
    assert entry is not None
    arrays, meta = entry
    assert (arrays["x"] == meta["value"]).all()
    assert _leftovers(own_cache) == ["key"]


def test_a_full_disk_is_noticed_before_writing(own_cache):
    with pytest.raises(ConfigError, match=r"GB free .* ZO_FL_CACHE"):
        with cache.writing("key", 10**18):
            pass
    assert _leftovers(own_cache) == []


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache.ENV, str(tmp_path / "file"))
    fakes.prepare(tmp_path, {"train": fakes.rows(3), "test": fakes.rows(3)})
    assert "ZO_FL_CACHE" in _error("tiny", tmp_path)


def test_a_missing_data_folder_is_said_with_the_command_to_mend_it(tmp_path):
    message = _error("cifar10", tmp_path / "nowhere")
    assert "config.data.name='cifar10'" in message and "does not exist" in message
    assert "experiments.prepare_data --dataset=cifar10 --data_dir=" in message


def test_a_missing_set_is_said_with_what_is_there(tmp_path):
    assert "no prepared data set is there" in _error("cifar10", tmp_path)
    fakes.prepare(tmp_path, {"train": fakes.rows(3), "test": fakes.rows(3)})
    assert re.search(r"config\.data\.data_dir=.*found there: tiny", _error("cifar10", tmp_path))
    assert "was not found" in _error("tiny:2.0.0", tmp_path)
    assert len(datasets.load("tiny:1.0.0", str(tmp_path)).train["image"]) == 3


@pytest.mark.parametrize("name", ["", "../x", "a/b/c", "a b", "/etc"])
def test_a_name_that_is_no_name_is_refused(tmp_path, name):
    assert "config.data.name" in _error(name, tmp_path)


def test_no_data_dir_means_the_environment_variable(tmp_path, monkeypatch):
    fakes.prepare(tmp_path, {"train": fakes.rows(3), "test": fakes.rows(3)})
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert len(datasets.load("tiny").train["image"]) == 3
    assert len(datasets.load("tiny", "").train["image"]) == 3


def test_tfrecord_files_are_refused_by_name(tmp_path):
    folder = fakes.prepare(tmp_path, {"train": fakes.rows(3), "test": fakes.rows(3)})
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    assert "tfrecord; only array_record" in _error("tiny", tmp_path)


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json", "array_record"])
def test_a_damaged_file_is_one_line(tmp_path, own_cache, file):
    folder = fakes.prepare(tmp_path, {"train": fakes.rows(3), "test": fakes.rows(3)})
    (path,) = [path for path in folder.iterdir() if file in path.name and "test" not in path.name]
    path.write_bytes(b"nonsense")
    assert "config.data.data_dir" in _error("tiny", tmp_path)
    assert _leftovers(own_cache) == []


def test_a_set_without_test_split_is_refused(tmp_path):
    fakes.prepare(tmp_path, {"train": fakes.rows(3)})
    assert "train and test (or validation) and has train" in _error("tiny", tmp_path)


def test_images_of_several_sizes_are_refused(tmp_path, own_cache):
    mixed = fakes.rows(3) + fakes.rows(1, shape=(4, 6, 3))
    fakes.prepare(tmp_path, {"train": mixed, "test": fakes.rows(2)}, shape=(None, None, 3))
    assert "more than one size" in _error("tiny", tmp_path)
    assert _leftovers(own_cache) == []


def test_images_of_undeclared_but_equal_size_load(tmp_path):
    splits = {"train": fakes.rows(3), "test": fakes.rows(2)}
    fakes.prepare(tmp_path, splits, shape=(None, None, 3))
    assert datasets.load("tiny", str(tmp_path)).test["image"].shape == (2, 8, 6, 3)


def test_labels_out_of_range_are_refused(tmp_path):
    unlabelled = [(image, -1) for image, _ in fakes.rows(3)]
    fakes.prepare(tmp_path, {"train": fakes.rows(3), "test": unlabelled})
    assert "labels of test lie in [-1, -1], outside [0, 3)" in _error("tiny", tmp_path)


def test_the_synthetic_set_is_balanced_deterministic_and_learnable():
    data = datasets.load("synthetic")
    assert data.train["image"].shape == (800, 8, 8, 3) and data.test["image"].shape[0] == 200
    assert (np.bincount(data.train["label"]) == 80).all()
    centres = np.stack([data.train["image"][data.train["label"] == k].mean(0) for k in range(10)])
    flat = data.test["image"][:, None].astype(float) - centres
    nearest = (flat**2).sum((2, 3, 4)).argmin(1)
    assert (nearest == data.test["label"]).mean() > 0.9
    datasets._synthetic.cache_clear()
    np.testing.assert_array_equal(datasets.load("synthetic").train["image"], data.train["image"])


def test_the_embedded_sample_is_balanced_and_has_the_statistics_of_cifar10():
    data = datasets.load("cifar10_sample")
    assert data.train["image"].shape == (2500, 32, 32, 3) and data.train["image"].dtype == np.uint8
    assert data.test["image"].shape == (1000, 32, 32, 3)
    assert (np.bincount(data.train["label"]) == 250).all()
    assert (np.bincount(data.test["label"]) == 100).all()
    pixels = data.train["image"] / 255
    np.testing.assert_allclose(pixels.mean((0, 1, 2)), data.mean, atol=0.01)
    np.testing.assert_allclose(pixels.std((0, 1, 2)), data.std, atol=0.01)
    facts = json.loads(sample.PATH.with_suffix(".json").read_text())
    assert len(set(facts["train"]["indices"])) == 2500 and max(facts["train"]["indices"]) < 50000
    assert len(set(facts["test"]["indices"])) == 1000 and max(facts["test"]["indices"]) < 10000
    assert os.path.getsize(sample.PATH) < 8e6


@pytest.mark.slow
def test_a_sample_holds_the_very_pixels_it_was_drawn_from(tmp_path):
    whole = datasets.load("cifar10_sample")
    assert sample.make_sample(whole, tmp_path / "s.webp") == (tmp_path / "s.webp").stat().st_size
    drawn = sample.load_sample(tmp_path / "s.webp")
    facts = json.loads((tmp_path / "s.json").read_text())
    for split in ("train", "test"):
        rows = facts[split]["indices"]
        picked = {name: leaf[rows] for name, leaf in getattr(whole, split).items()}
        chex.assert_trees_all_equal(getattr(drawn, split), picked)


def test_a_damaged_sample_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        sample.load_sample(tmp_path / "none.webp")
    (tmp_path / "bad.webp").write_bytes(b"nonsense")
    (tmp_path / "bad.json").write_text('{"train": {"labels": []}, "test": {"labels": []}}')
    with pytest.raises(ConfigError, match="cannot be read"):
        sample.load_sample(tmp_path / "bad.webp")
