"""The cache on disk: damage is found, and killed or simultaneous builds leave whole entries."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tests import commands
from zo_fl.data import cache
from zo_fl.engine.fields import ConfigError


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.ENV, str(tmp_path))
    return tmp_path


def build(size=2_000_000, **facts):
    with cache.writing("key", size) as folder:
        np.save(folder / "labels.npy", np.arange(300, dtype=np.int32))
        np.save(folder / "images.npy", np.arange(size, dtype=np.uint8))
        cache.write_meta(folder, ["labels", "images"], **facts)


def flip_last_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def change_a_number(path):
    path.write_text(path.read_text().replace("3", "4", 1))


def test_an_entry_comes_back_memory_mapped():
    assert cache.read("key") is None
    build(num_classes=3)
    arrays, meta = cache.read("key")
    np.testing.assert_array_equal(arrays["labels"], np.arange(300))
    assert isinstance(arrays["images"], np.memmap) and meta["num_classes"] == 3


@pytest.mark.parametrize(
    ("file", "damage"),
    (
        ("images.npy", flip_last_bit),
        ("labels.npy", lambda path: path.unlink()),
        ("meta.json", lambda path: path.write_text("[]")),
        ("meta.json", change_a_number),
    ),
)
def test_a_damaged_entry_is_said_in_one_line_and_can_be_made_again(root, file, damage, capfd):
    build(num_classes=3)
    damage(root / "key" / file)
    assert cache.read("key") is None
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "is damaged (" in said and "made again" in said
    build(num_classes=3)
    assert cache.read("key") is not None and capfd.readouterr().err == ""


def test_of_two_writers_at_once_one_wins(root):
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
    arrays, meta = cache.read("key")
    assert (arrays["x"] == meta["value"]).all()
    assert [path.name for path in root.iterdir()] == ["key"]


def test_a_cache_that_cannot_be_written_names_the_variable(root, monkeypatch):
    with pytest.raises(ConfigError, match="do not fit on its disk.* ZO_FL_CACHE"):
        with cache.writing("key", 10**18):
            pass
    assert list(root.iterdir()) == []
    (root / "file").touch()
    monkeypatch.setenv(cache.ENV, str(root / "file"))
    with pytest.raises(ConfigError, match="ZO_FL_CACHE"):
        build()


def test_the_cache_is_no_address(root, monkeypatch):
    monkeypatch.setenv(cache.ENV, "gs://bucket/cache")
    with pytest.raises(ConfigError, match="gs://bucket/cache is an address"):
        cache.root()


def test_only_leftovers_of_dead_processes_of_this_machine_are_removed(root):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine = cache.temporary_folder(root, "key").name
    theirs = mine.replace(f".{os.getpid()}.", f".{dead.pid}.")
    elsewhere = f".key.another-host.{dead.pid}.0123abcd"
    for name in (mine, theirs, elsewhere):
        (root / name).mkdir()
        (root / name / "images.npy").touch()
    cache.remove_leftovers(root)
    assert {path.name for path in root.iterdir()} == {mine, elsewhere}


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
    for seconds in (60, 0.01):
        with commands.start("-c", BUILD, seconds) as process:
            while process.stdout != "begun\n":
                assert process.poll(0.01) is None, process.stderr
            time.sleep(0.01)
    assert commands.run("-c", BUILD, 0).returncode == 0
    assert [path.name for path in root.iterdir()] == ["key"]
    arrays, _ = cache.read("key")
    assert len(arrays["labels"]) == 300
