"""Calls go down: a module imports from its own layer and lower ones only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Lowest first. A package is one entry.
LAYERS = (
    {"__init__"},
    {"errors", "types", "keys", "trees", "units", "processes"},
    {"precision"},
    {"models", "data", "zo", "server_optimizers", "engine"},
    {"task", "statistics", "round", "zo_client"},
    {"phase"},
    {"algorithms"},
    {"cost", "evaluate", "experiment", "streaming"}
    | {"metrics", "checkpoint", "progress", "curves", "provenance", "workdir"},
    {"schedule", "warm_starts"},
    {"run_folder"},
    {"train"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = sorted((ROOT / "zo_fl").rglob("*.py"))


def entry(path):
    """Returns the entry of LAYERS that a file of zo_fl belongs to."""
    return path.relative_to(ROOT / "zo_fl").with_suffix("").parts[0]


def imported(path):
    """Yields the absolute dotted names that a file imports, function-level imports too."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join((*above, *filter(None, [node.module])))
            yield from (f"{source}.{alias.name}" for alias in node.names)


def imported_entries(path):
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "zo_fl":
            is_module = len(parts) > 1 and parts[1] in LEVEL
            yield parts[1] if is_module else "__init__"


def test_every_module_has_a_layer():
    assert {entry(path) for path in MODULES} <= LEVEL.keys(), "add the new module to LAYERS"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    level = LEVEL[entry(path)]
    higher = {name for name in imported_entries(path) if LEVEL[name] > level}
    assert not higher, f"{entry(path)} imports from higher layers: {sorted(higher)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_library_knows_no_experiment(path):
    assert not {name.split(".")[0] for name in imported(path)} & {"experiments", "configs", "tests"}


def test_the_check_sees_every_way_to_import(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    path = tmp_path / "zo_fl" / "data" / "module.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import zo_fl.train\nfrom zo_fl import round\nfrom .. import cost\n"
        "from ..phase import Phase\nfrom . import sampling\n"
        "def f():\n    from zo_fl.algorithms import zo\n"
    )
    expected = ["train", "round", "cost", "phase", "data", "algorithms"]
    assert sorted(imported_entries(path)) == sorted(expected)
