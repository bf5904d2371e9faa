"""A data set goes to another machine in parts, and is whole there or refused."""

import numpy as np
import pytest

from experiments import packing
from tests.data import fakes
from zo_fl.data import cache, datasets
from zo_fl.engine.errors import ConfigError


@pytest.fixture
def packed(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.ENV, str(tmp_path / "cache"))
    splits = {"train": fakes.rows(40), "test": fakes.rows(12, seed=1)}
    fakes.prepare(tmp_path / "data", splits)
    line = packing.pack("tiny", str(tmp_path / "data"), tmp_path / "parts", part_bytes=1000)
    return line, tmp_path


def test_it_arrives_as_it_was_and_needs_nothing_else(packed, monkeypatch):
    line, path = packed
    parts = sorted((path / "parts").glob("part-*"))
    assert len(parts) > 2 and all(part.stat().st_size <= 1000 for part in parts)
    assert line == f"tiny: {len(parts)} parts, 0 MB, in {path / 'parts'}"
    packing.join(path / "parts", path / "there")
    before = datasets.load("tiny", str(path / "data"))
    monkeypatch.setenv(cache.ENV, str(path / "empty"))  # another machine's
    after = datasets.load("tiny", str(path / "there"))
    for split in ("train", "test"):
        for key, array in getattr(before, split).items():
            np.testing.assert_array_equal(array, getattr(after, split)[key])
    np.testing.assert_array_equal(before.mean, after.mean)
    assert not (path / "empty").exists()
    # And from there to a third one.
    packing.pack("tiny", str(path / "there"), path / "again", part_bytes=10**6)
    assert len(list((path / "again").glob("part-*"))) == 1


@pytest.mark.parametrize(
    ("harm", "message"),
    (
        (lambda part: part.write_bytes(b"x" + part.read_bytes()[1:]), "part-001 is not what was"),
        (lambda part: part.write_bytes(part.read_bytes()[:-1]), "part-001 is not what was"),
        (lambda part: part.unlink(), "part-001 is missing"),
        (lambda part: (part.parent / packing.MANIFEST).write_text("{}"), "is no list of parts"),
        (lambda part: (part.parent / packing.MANIFEST).unlink(), "is no list of parts"),
    ),
)
def test_what_did_not_arrive_whole_is_named_and_nothing_is_left(packed, harm, message):
    _, path = packed
    harm(path / "parts" / "part-001")
    with pytest.raises(ConfigError, match=message):
        packing.join(path / "parts", path / "there")
    assert not (path / "there").exists()


def test_nothing_is_overwritten(packed):
    _, path = packed
    with pytest.raises(ConfigError, match="parts is not empty; change --out"):
        packing.pack("tiny", str(path / "data"), path / "parts", part_bytes=1000)
    packing.join(path / "parts", path / "there")
    with pytest.raises(ConfigError, match="is there already; change --data_dir"):
        packing.join(path / "parts", path / "there")
    assert [p.name for p in (path / "there").iterdir()] == ["tiny"]
    joined = path / "there" / "tiny" / "1.0.0" / "decoded" / "train_images.npy"
    joined.write_bytes(joined.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="decoded is damaged"):
        datasets.load("tiny", str(path / "there"))


def test_packing_that_is_interrupted_leaves_nothing(packed, monkeypatch):
    _, path = packed

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(packing, "write_whole", interrupted)  # after the parts
    before = sorted(path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        packing.pack("tiny", str(path / "data"), path / "others", part_bytes=1000)
    assert sorted(path.iterdir()) == before
