import ast
import itertools
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jax

import zo_fl
from experiments import main

ROOT = Path(__file__).parent.parent


def setup_arguments(monkeypatch):
    """Returns what setup.py hands to setuptools."""
    import setuptools

    found = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", found.update)
    source = (ROOT / "setup.py").read_text()
    exec(compile(source, ROOT / "setup.py", "exec"), {"__file__": str(ROOT / "setup.py")})
    return found


def names(requirements):
    return {re.split(r"[\[<>=!~ ]", text)[0].lower().replace("_", "-") for text in requirements}


def test_the_version_is_read_from_the_package(monkeypatch):
    assert setup_arguments(monkeypatch)["version"] == zo_fl.__version__


def wheel_files(monkeypatch, tmp_path):
    """Returns where build_py puts what, as paths in site-packages."""
    import setuptools

    distribution = setuptools.Distribution({**setup_arguments(monkeypatch), "script_name": "x"})
    build = distribution.get_command_obj("build_py")
    build.build_lib = str(tmp_path)
    build.ensure_finalized()
    return {
        Path(name).relative_to(tmp_path).as_posix()
        for name in build.get_outputs(include_bytecode=False)
    }


def test_the_wheel_holds_all_code_but_the_peers_in_one_folder(monkeypatch, tmp_path):
    files = wheel_files(monkeypatch, tmp_path)
    with_code = {
        within + path.relative_to(ROOT).as_posix()
        for top, within in (("zo_fl", ""), ("experiments", "zo_fl/"), ("configs", "zo_fl/"))
        for path in (ROOT / top).rglob("*.py")
        if "peers" not in path.parts
    }
    assert {name for name in files if name.endswith(".py")} == with_code
    assert {name.split("/")[0] for name in files} == {"zo_fl"}
    assert {name for name in files if not name.endswith(".py")} == {
        "zo_fl/py.typed",
        "zo_fl/data/cifar10_sample.json",
        "zo_fl/data/cifar10_sample.webp",
        "zo_fl/experiments/analysis/paper.json",
    }


def test_installed_code_names_nothing_that_only_the_repository_has():
    for top in ("zo_fl", "experiments", "configs"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                absolute = isinstance(node, ast.ImportFrom) and not node.level
                modules = [node.module or ""] if absolute else []
                if isinstance(node, ast.Import):
                    modules = [alias.name for alias in node.names]
                tops = {module.split(".")[0] for module in modules}
                assert not tops & {"experiments", "configs", "tests"}, path


def test_the_console_script_is_the_command_that_runs_experiments(monkeypatch):
    scripts = setup_arguments(monkeypatch)["entry_points"]["console_scripts"]
    assert scripts == ["zo-fl = zo_fl.experiments.main:run"]
    assert callable(main.run)


def test_everything_imported_is_required(monkeypatch):
    arguments = setup_arguments(monkeypatch)
    required = names(arguments["install_requires"])
    # Where the import is named differently, and what comes with another requirement by design.
    provided = {"absl": "absl-py", "orbax": "orbax-checkpoint", "cv2": "opencv-python-headless"}
    missing = set()
    for top in ("zo_fl", "experiments", "configs"):
        for path in (ROOT / top).rglob("*.py"):
            if path.is_relative_to(ROOT / "experiments" / "peers"):
                continue  # each peer has an environment of its own
            for node in ast.walk(ast.parse(path.read_text())):
                absolute = isinstance(node, ast.ImportFrom) and not node.level
                modules = [node.module or ""] if absolute else []
                if isinstance(node, ast.Import):
                    modules = [alias.name for alias in node.names]
                for module in modules:
                    name = module.split(".")[0]
                    name = provided.get(name, name).lower().replace("_", "-")
                    own = name in ("", "zo-fl", "experiments", "configs")
                    if not own and module.split(".")[0] not in sys.stdlib_module_names:
                        missing |= {name} - required
    assert not missing


def test_no_requirement_is_tensorflow(monkeypatch):
    arguments = setup_arguments(monkeypatch)
    lists = [arguments["install_requires"], *arguments["extras_require"].values()]
    assert not names(itertools.chain(*lists)) & {"tensorflow", "tensorflow-cpu", "tf-nightly"}


def test_the_python_versions_agree(monkeypatch):
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert setup_arguments(monkeypatch)["python_requires"] == ">=3.11"
    assert settings["ruff"]["target-version"] == "py311"
    assert settings["pyright"]["pythonVersion"] == "3.11"


def test_ci_and_pre_commit_run_the_same_tools():
    ci = (ROOT / ".ci" / "run").read_text()
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    for tool in ("ruff format", "ruff check", "codespell", "pyright"):
        assert f"step {tool}" in ci
        assert f"entry: {tool}" in hooks


def test_the_ci_script_is_executable_and_parses():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)


def test_tests_run_on_eight_devices_with_rank_promotion_refused():
    assert jax.device_count() == 8 or jax.default_backend() != "cpu"
    assert jax.config.jax_numpy_rank_promotion == "raise"  # pyright: ignore
