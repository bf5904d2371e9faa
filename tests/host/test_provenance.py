import datetime
import json
import socket
import subprocess

import jax
import pytest

import zo_fl
from zo_fl.host import provenance as provenance_module
from zo_fl.host.provenance import provenance


def test_it_is_json_and_names_no_machine():
    text = json.dumps(provenance(zo_fl.__version__))
    assert socket.gethostname() not in text


def test_versions_devices_and_numeric_settings_are_those_in_use():
    found = provenance(zo_fl.__version__)
    assert found["versions"]["zo_fl"] == zo_fl.__version__
    assert found["versions"]["jax"] == jax.__version__
    assert found["devices"]["count"] == jax.device_count()
    assert found["numerics"]["prng_implementation"] == "threefry2x32"
    with jax.default_matmul_precision("highest"):
        assert (
            provenance(zo_fl.__version__)["numerics"]["jax_default_matmul_precision"] == "highest"
        )


def test_it_started_now_in_utc():
    started = datetime.datetime.fromisoformat(provenance(zo_fl.__version__)["started"])
    assert abs(datetime.datetime.now(datetime.UTC) - started) < datetime.timedelta(minutes=1)
    assert started.utcoffset() == datetime.timedelta(0)


def git(folder, *command):
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *command], check=True, capture_output=True)


def test_revision_and_dirty_flag_follow_the_repository(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "file.py").write_text("1\n")
    git(tmp_path, "init")
    assert provenance_module._git_state(package) is None
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "Begin")
    clean = provenance_module._git_state(package)
    assert clean is not None
    assert len(clean["revision"]) == 40 and not clean["dirty"]
    (package / "file.py").write_text("2\n")
    assert provenance_module._git_state(package) == clean | {"dirty": True}


def test_a_package_that_its_repository_ignores_has_no_revision(tmp_path):
    (tmp_path / ".gitignore").write_text("venv\n")
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "file.py").write_text("1\n")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "Begin")
    assert provenance_module._git_state(tmp_path / "venv") is None


@pytest.mark.parametrize("missing", ["repository", "git"])
def test_without_repository_or_git_there_is_no_revision(tmp_path, monkeypatch, missing):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    if missing == "git":
        monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance_module._git_state(tmp_path) is None
