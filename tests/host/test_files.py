import errno
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests import commands
from zo_fl.data import cache
from zo_fl.engine.fields import ConfigError
from zo_fl.host import files
from zo_fl.host.files import StorageError


def test_on_a_full_disk_a_file_stays_as_it_was_and_one_line_names_it(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_whole(path, "before")

    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StorageError) as caught:
        files.write_whole(path, "x" * 5000)
    assert str(caught.value) == f"cannot write {path}: No space left on device"
    assert caught.value.remedy == "make room for it"
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_an_error_of_a_library_is_one_line_that_names_the_file(tmp_path):
    with pytest.raises(StorageError, match="^cannot write .*checkpoint: two lines$"):
        with files.storing(tmp_path / "checkpoint", any_error=True):
            raise ValueError("two\nlines")
    with pytest.raises(StorageError) as caught, files.storing(tmp_path, any_error=True):
        raise ValueError("RESOURCE_EXHAUSTED: no space left on device")
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(ValueError, match="a bug"), files.storing(tmp_path):
        raise ValueError("a bug")


def test_a_folder_that_cannot_be_written_says_why(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write .*: Not a directory"):
        files.write_whole(tmp_path / "file" / "name", "x")
    with pytest.raises(ConfigError, match="cannot write .*file/run.*change --workdir"):
        with files.owned(tmp_path / "file" / "run"):
            pass


def test_json_files_have_null_for_what_json_lacks(tmp_path):
    content = {"best": np.float32("nan"), "all": [1.5, np.inf], "n": np.int32(3)}
    files.write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"best": None, "all": [1.5, None], "n": 3} and "NaN" not in text


HOLD = """
import pathlib, sys, time
from zo_fl.host import files
with files.owned(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_owner_is_refused_in_one_line_that_names_the_first(tmp_path):
    with files.owned(tmp_path / "a"):
        with pytest.raises(ConfigError, match=r"in use by process \d+ on .+, started 2") as caught:
            with files.owned(tmp_path / "a"):
                pass
        assert "\n" not in str(caught.value)
        with files.owned(tmp_path / "b"):
            pass


def test_a_file_in_place_of_a_folder_is_bad_input(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write .*file: File exists; change --workdir"):
        with files.owned(tmp_path / "file"):
            pass


def test_a_killed_owner_holds_nothing(tmp_path):
    with commands.start("-c", HOLD, tmp_path) as process:
        while process.stdout != "held\n":
            assert process.poll() is None, process.stderr
            time.sleep(0.01)
        with pytest.raises(ConfigError, match=f"process {process.pid} "):
            with files.owned(tmp_path):
                pass
        assert not files.wait_until_free(tmp_path, 0)
    assert files.wait_until_free(tmp_path, 5)
    with files.owned(tmp_path):
        pass


def test_who_waits_goes_on_when_the_folder_is_free(tmp_path):
    assert files.wait_until_free(tmp_path / "nothing", 0)
    with files.owned(tmp_path):
        seen = []
        thread = threading.Thread(target=lambda: seen.append(files.wait_until_free(tmp_path, 20)))
        thread.start()
    thread.join()
    assert seen == [True]


def test_a_path_may_begin_at_home_and_is_no_address(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.path_of("~/run") == tmp_path / "run"
    assert files.path_of("C:/run") == Path("C:/run")
    for address in (
        "gs://bucket/run",
        "GS://bucket/run",
        "file:///tmp/run",
        Path("s3://bucket/run"),
    ):
        with pytest.raises(ConfigError, match="is an address, not a folder of this machine"):
            files.path_of(address)
    with pytest.raises(ConfigError, match="a{40}... has .* its longest name 300; allowed"):
        files.path_of("a" * 300)
    with pytest.raises(ConfigError, match=r"(ab/){13}a... has \d+ bytes, its longest name \d+; al"):
        files.path_of("ab/" * 1500)


def test_without_a_home_folder_only_paths_that_begin_at_it_are_refused(monkeypatch):
    def none(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(cache.ENV)
    monkeypatch.setattr(Path, "expanduser", none)
    with pytest.raises(ConfigError, match="no home folder here; give a whole path"):
        files.path_of("~/run")
    assert cache.root().is_absolute()
