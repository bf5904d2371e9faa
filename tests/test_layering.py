"""The rooms of the house, and which may import which."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("engine", "models", "data", "wrap", "zo", "sgd", "heads", "host")

# room -> what its files may import of zo_fl, beside their own room
MAY_IMPORT = {
    "engine": (),
    "models": ("engine",),
    "data": ("engine",),
    "wrap": ("engine",),
    "zo": ("engine", "models", "wrap"),
    "sgd": ("engine", "models", "wrap"),
    "heads": ("engine", "models", "wrap", "zo.directions", "zo.estimators"),
    "host": ("engine", "data", "wrap.privacy"),
    "top": ("top", "engine", "models", "data", "wrap", "host"),
}
# file -> what it may import besides
EXCEPTIONS = {
    "methods.py": ("zo", "sgd", "heads"),
    "sgd/mixed_tiers.py": ("zo.methods",),
}


def place(parts):
    """Returns where a dotted name of zo_fl lies, as ``zo.directions``; files at its top in one."""
    inside = parts[1:]
    return ".".join(inside) if inside[:1] and inside[0] in ROOMS else "top"


def imported(path, package):
    """Yields the parts of the names that a file imports, in functions too.

    Args:
      path: of the file.
      package: parts of the package that it lies in.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            source = (*above, *filter(None, (node.module or "").split(".")))
            yield from ((*source, alias.name) for alias in node.names)


def is_within(name, rooms):
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_what_lies_below_it_only(room):
    package = ROOT / "zo_fl"
    files = {path: path.relative_to(package) for path in package.rglob("*.py")}
    files = {
        path: name
        for path, name in files.items()
        if place((".", *name.parts)).split(".")[0] == room
    }
    assert files
    for path, name in files.items():
        allowed = (room, *MAY_IMPORT[room], *EXCEPTIONS.get(name.as_posix(), ()))
        for parts in imported(path, ("zo_fl", *name.parts[:-1])):
            assert parts[0] not in ("experiments", "benchmarks", "configs", "tests"), path
            if parts[0] == "zo_fl":
                assert is_within(place(parts), allowed), f"{name} imports {'.'.join(parts)}"


def test_the_check_sees_every_way_to_import(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        "import zo_fl.api\nfrom zo_fl import experiment\nfrom .. import host\n"
        "from ..engine.algorithm import Phase\nfrom . import partition\n"
        "def f():\n    from zo_fl.zo import methods\n"
    )
    found = [place(parts) for parts in imported(path, ("zo_fl", "data"))]
    expected = ["top", "top", "host", "engine.algorithm.Phase", "data.partition", "zo.methods"]
    assert sorted(found) == sorted(expected)
    assert is_within("zo.directions.create", ("zo.directions",))
    assert not is_within("zo.directions_of", ("zo.directions",))
