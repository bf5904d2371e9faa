import errno
import shutil

import pytest

from zo_fl.host import files
from zo_fl.host.files import StorageError


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_whole(path, "before")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda place: usage._replace(free=1000))
    with pytest.raises(StorageError) as caught:
        files.write_whole(path, "x" * 5000)
    message = str(caught.value)
    assert message == (
        f"cannot write {path}: No space left on device (5000 bytes to be written, 1000 free)"
    )
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_what_a_library_raises_is_one_line_that_names_the_file(tmp_path):
    with pytest.raises(StorageError, match="^cannot write .*checkpoint: two lines$"):
        with files.storing(tmp_path / "checkpoint", any_error=True):
            raise ValueError("two\nlines")
    with pytest.raises(ValueError, match="a bug"), files.storing(tmp_path):
        raise ValueError("a bug")


def test_a_folder_that_cannot_be_written_says_why(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write .*: Not a directory"):
        files.write_whole(tmp_path / "file" / "name", "x")
