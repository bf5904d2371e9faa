"""Decoded arrays on disk: damage is found and mended, and of dead processes nothing stays."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from zo_fl.data import cache, leftovers


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.ENV, str(tmp_path))
    return tmp_path


@pytest.fixture
def entry(root):
    with cache.writing("key", 100) as folder:
        np.save(folder / "labels.npy", np.arange(300, dtype=np.int32))
        np.save(folder / "images.npy", np.arange(2_000_000, dtype=np.uint8))
        cache.write_meta(folder, ["labels", "images"], num_classes=3)
    return root / "key"


def zero_after_header(path):
    data = path.read_bytes()
    path.write_bytes(data[:128] + bytes(len(data) - 128))


def test_an_entry_comes_back(entry):
    found = cache.read("key")
    assert found is not None
    arrays, meta = found
    np.testing.assert_array_equal(arrays["labels"], np.arange(300))
    assert isinstance(arrays["images"], np.memmap) and meta["num_classes"] == 3
    assert cache.read("another") is None


@pytest.mark.parametrize(
    "damage",
    (
        lambda entry: (entry / "labels.npy").write_bytes(b""),
        lambda entry: zero_after_header(entry / "labels.npy"),
        lambda entry: (entry / "images.npy").unlink(),
        lambda entry: (entry / "images.npy").write_bytes(b"x" * 2_000_128),
        lambda entry: (entry / "meta.json").write_text("[]"),
        lambda entry: (entry / "meta.json").write_text(""),
        lambda entry: (entry / "meta.json").write_text('{"arrays": {}}'),
        lambda entry: (entry / "meta.json").write_text(
            (entry / "meta.json").read_text().replace("3", "4", 1)
        ),
    ),
)
def test_damage_is_one_line_and_the_entry_counts_as_absent(entry, damage, capfd):
    damage(entry)
    assert cache.read("key") is None
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "is damaged (" in said and "written anew" in said
    with cache.writing("key", 100) as folder:  # which replaces it
        np.save(folder / "labels.npy", np.zeros(3))
        cache.write_meta(folder, ["labels"])
    assert cache.read("key") is not None and capfd.readouterr().err == ""


def test_the_sums_of_large_arrays_are_compared_once_a_day_and_when_asked(entry, capfd):
    zero_after_header(entry / "images.npy")
    assert cache.read("key") is not None
    assert cache.read("key", verify=True) is None
    assert "images.npy is not what was written" in capfd.readouterr().err
    yesterday = time.time() - 90_000
    os.utime(entry / "verified", (yesterday, yesterday))
    assert cache.read("key") is None


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(root, entry):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine = leftovers.temporary(root, "key")
    theirs = [
        root / mine.name.replace(f".{os.getpid()}.", f".{dead.pid}."),
        root / f".key.{dead.pid}.0123abcd",  # as earlier versions named them
    ]
    elsewhere = root / f".key.another-host.{dead.pid}.0123abcd"
    for path in (mine, elsewhere, *theirs):
        path.mkdir()
        (path / "images.npy").touch()
    assert sorted(leftovers.remove(root)) == sorted(path.name for path in theirs)
    assert sorted(path.name for path in root.iterdir()) == sorted(
        [mine.name, elsewhere.name, "key"]
    )


BUILD = """
import sys, time
import numpy as np
from zo_fl.data import cache
with cache.writing("key", 100) as folder:
    np.save(folder / "labels.npy", np.arange(300))
    print("begun", flush=True)
    time.sleep(float(sys.argv[1]))
    cache.write_meta(folder, ["labels"])
"""


@pytest.mark.slow
def test_a_build_that_is_killed_leaves_nothing_for_the_next_one(root):
    for seconds in (60, 60, 0.02, 0.01, 0.0):
        command = [sys.executable, "-c", BUILD, str(seconds)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stdout.readline() == "begun\n"
            time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
    subprocess.run([sys.executable, "-c", BUILD, "0"], check=True, stdout=subprocess.DEVNULL)
    assert [path.name for path in root.iterdir()] == ["key"]
    found = cache.read("key")
    assert found is not None and json.dumps(found[1]) and len(found[0]["labels"]) == 300
