"""The rooms of the house, and who may know whom (README, "How it is built")."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# room -> the rooms that its files may import, beside its own
MAY_IMPORT = {
    "engine": set(),
    "models": {"engine"},
    "data": {"engine"},
    "wrap": {"engine", "heads"},
    "zo": {"engine", "models", "wrap"},
    "sgd": {"engine", "models", "wrap", "zo"},
    "heads": {"engine", "models", "wrap", "zo"},
    "host": {"engine", "data", "heads"},
    "top": {"engine", "models", "data", "wrap", "zo", "sgd", "heads", "host"},
}


def room(parts):
    """Returns the room of a dotted name of zo_fl; files at its top are one room."""
    return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else "top"


def imported(path):
    """Yields the parts of the absolute names that a file imports, function-level imports too."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            source = (*above, *(node.module or "").split("."))
            yield from ((*filter(None, source), alias.name) for alias in node.names)


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_a_room_imports_what_lies_below_it_only(name):
    files = [p for p in (ROOT / "zo_fl").rglob("*.py") if room(p.relative_to(ROOT).parts) == name]
    assert files
    for path in files:
        for parts in imported(path):
            assert parts[0] not in ("experiments", "configs", "tests"), path
            if parts[0] == "zo_fl":
                assert room(parts) in MAY_IMPORT[name] | {name}, f"{path} imports {parts}"


def test_the_check_sees_every_way_to_import(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    path = tmp_path / "zo_fl" / "data" / "module.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import zo_fl.api\nfrom zo_fl import experiment\nfrom .. import host\n"
        "from ..engine.phase import Phase\nfrom . import partition\n"
        "def f():\n    from zo_fl.zo import methods\n"
    )
    rooms = [room(parts) for parts in imported(path)]
    assert sorted(rooms) == ["data", "engine", "host", "top", "top", "zo"]
