"""A data set goes to another machine in parts, and is whole there or refused."""

import numpy as np
import pytest

from benchmarks import pack_data
from tests.data import fakes
from zo_fl.data import cache, datasets
from zo_fl.engine.fields import ConfigError


@pytest.fixture
def packed(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.ENV, str(tmp_path / "cache"))
    splits = {"train": fakes.rows(40), "test": fakes.rows(12, seed=1)}
    fakes.prepare(tmp_path / "data", splits)
    pack_data.pack("tiny", str(tmp_path / "data"), tmp_path / "parts", part_bytes=1000)
    return tmp_path


def test_it_arrives_as_it_was_and_needs_nothing_else(packed, monkeypatch):
    parts = sorted((packed / "parts").glob("part-*"))
    assert len(parts) > 2 and all(part.stat().st_size <= 1000 for part in parts)
    pack_data.join(packed / "parts", packed / "there")
    before = datasets.load("tiny", str(packed / "data"))
    monkeypatch.setenv(cache.ENV, str(packed / "empty"))  # another machine's
    after = datasets.load("tiny", str(packed / "there"))
    for split in ("train", "test"):
        for key, array in getattr(before, split).items():
            np.testing.assert_array_equal(array, getattr(after, split)[key])
    np.testing.assert_array_equal(before.mean, after.mean)
    assert not (packed / "empty").exists()
    with pytest.raises(ConfigError, match="parts is not empty; change --out"):
        pack_data.pack("tiny", str(packed / "there"), packed / "parts", part_bytes=1000)
    with pytest.raises(ConfigError, match="is there already; change --data_dir"):
        pack_data.join(packed / "parts", packed / "there")


@pytest.mark.parametrize(
    ("harm", "message"),
    (
        (lambda part: part.write_bytes(b"x" + part.read_bytes()[1:]), "part-001 is not what was"),
        (lambda part: part.unlink(), "part-001 is missing"),
        (lambda part: (part.parent / pack_data.MANIFEST).write_text("{}"), "is no list of parts"),
    ),
)
def test_parts_that_did_not_arrive_whole_are_named_and_nothing_is_left(packed, harm, message):
    harm(packed / "parts" / "part-001")
    with pytest.raises(ConfigError, match=message):
        pack_data.join(packed / "parts", packed / "there")
    assert not (packed / "there").exists()
