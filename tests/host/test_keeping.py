"""Features that runs leave for each other are the ones that each would compute."""

import numpy as np
import pytest

from tests import tiny
from zo_fl import train
from zo_fl.host import keeping


def like(value=0.0):
    return {"a": np.full((2, 3), value, np.float32), "b": np.arange(4, dtype=np.int32)}


def never():
    raise AssertionError("made again")


def test_what_one_leaves_the_next_one_finds(tmp_path):
    made = keeping.load_or_make(tmp_path / "new", "x", like(), lambda: like(3.0))
    found = keeping.load_or_make(tmp_path / "new", "x", like(), never)
    for one in (made, found):
        np.testing.assert_array_equal(one["a"], np.full((2, 3), 3.0))
        assert one["b"].dtype == np.int32


@pytest.mark.parametrize(
    "damage",
    (
        lambda data: b"",
        lambda data: data[:40],
        lambda data: bytes([*data[:150], data[150] ^ 1, *data[151:]]),
    ),
)
def test_a_damaged_file_is_made_anew(tmp_path, damage):
    keeping.load_or_make(tmp_path, "x", like(), lambda: like(1.0))
    path = tmp_path / "x.npz"
    path.write_bytes(damage(path.read_bytes()))
    again = keeping.load_or_make(tmp_path, "x", like(), lambda: like(1.0))
    np.testing.assert_array_equal(again["a"], like(1.0)["a"])
    keeping.load_or_make(tmp_path, "x", like(), never)


def test_a_folder_that_cannot_be_written_to_is_done_without(tmp_path):
    (tmp_path / "file").write_text("")
    assert keeping.load_or_make(tmp_path / "file", "x", like(), like)["a"].shape == (2, 3)


def test_few_files_are_left_and_names_tell_programs_and_arrays_apart(tmp_path):
    names = [keeping.digest(text, like(v)) for text in ("p", "q") for v in (0.0, 1.0)]
    assert len(set(names)) == 4 and names[0] == keeping.digest("p", like(0.0))
    for name in names:
        keeping.load_or_make(tmp_path, name, like(), like)
    left = {path.stem for path in tmp_path.iterdir()}
    assert len(left) == 3 and names[-1] in left


@pytest.mark.slow
def test_runs_that_share_end_as_those_that_do_not(tmp_path):
    pool, summaries = tmp_path / "pool", []
    for name in ("ridge", "gaussian_head"):
        config = tiny.config(name)
        alone = train.run(config, tmp_path / name / "alone", quiet=True)
        sharing = train.run(config, tmp_path / name / "sharing", shared=pool, quiet=True)
        for key in ("final_accuracy", "best_val_accuracy"):
            assert sharing[key] == pytest.approx(alone[key], abs=0.01)
        for key in ("low_passes", "low_uplink_bytes", "forward_passes"):
            assert sharing[key] == alone[key]
        summaries.append(sharing)
    assert len(list(pool.iterdir())) == 1  # the same features serve both
