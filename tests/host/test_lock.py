import subprocess
import sys
import threading

import pytest

from zo_fl.engine.errors import ConfigError
from zo_fl.host import lock

HOLD = """
import pathlib, sys, time
from zo_fl.host import lock
with lock.owned(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_owner_is_refused_in_one_line_that_names_the_first(tmp_path):
    with lock.owned(tmp_path / "a"):
        with pytest.raises(ConfigError, match=r"in use by process \d+ on .+, started 2") as caught:
            with lock.owned(tmp_path / "a"):
                pass
        assert "\n" not in str(caught.value)
        with lock.owned(tmp_path / "b"):
            pass
    with lock.owned(tmp_path / "a"):
        pass


def test_a_killed_owner_holds_nothing(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"process {process.pid} "):
            with lock.owned(tmp_path):
                pass
        assert not lock.wait_until_free(tmp_path, 0)
        process.kill()
    assert lock.wait_until_free(tmp_path, 5)
    with lock.owned(tmp_path):
        pass


def test_who_waits_goes_on_when_it_is_free(tmp_path):
    assert lock.wait_until_free(tmp_path / "nothing", 0)
    with lock.owned(tmp_path):
        seen = []
        thread = threading.Thread(target=lambda: seen.append(lock.wait_until_free(tmp_path, 20)))
        thread.start()
    thread.join()
    assert seen == [True]


def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write .*file/run.*change --workdir"):
        with lock.owned(tmp_path / "file" / "run"):
            pass
