"""Measures the house: how much of the code one has to read, and what it asks of its reader.

    python -m benchmarks.house [--cases]

Prints a table. ``--cases`` also counts the cases of the tests, which takes some seconds. Everything
is read from the source with ``ast``; nothing is run but the config's declarations.
"""

import ast
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent
# What a reader opens for one zeroth-order round, client and server, in this order.
ROUND = (
    "zo/methods",
    "zo/client",
    "zo/estimators",
    "zo/directions",
    "engine/algorithm",
    "engine/round",
    "engine/server",
    "engine/keys",
)


def path_of(module: str) -> Path | None:
    """Returns the file of a dotted module of the project, or None if it is none."""
    base = ROOT.joinpath(*module.split("."))
    found = [p for p in (base.with_suffix(".py"), base / "__init__.py") if p.exists()]
    return found[0] if found else None


def imports(path: Path) -> set[Path]:
    """Returns the files of ``zo_fl`` that a file imports, without packages' own files."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("zo_fl"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {path_of(name) or path_of(node.module or "") for name in names}
        elif isinstance(node, ast.Import):
            found |= {path_of(a.name) for a in node.names if a.name.startswith("zo_fl")}
    return {p for p in found if p is not None and p.name != "__init__.py"}


def closure(path: Path) -> set[Path]:
    """Returns a file and all files of ``zo_fl`` that it needs, its imports' imports included."""
    seen, left = set(), {path}
    while left:
        one = left.pop()
        seen.add(one)
        left |= imports(one) - seen
    return seen


def lines(paths: Iterable[Path]) -> int:
    """Returns the lines of some files."""
    return sum(len(path.read_text().splitlines()) for path in paths)


def classes(path: Path) -> dict[str, int]:
    """Returns class -> its number of annotated fields."""
    return {
        node.name: sum(isinstance(item, ast.AnnAssign) for item in node.body)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
    }


def config_fields() -> int:
    """Returns the number of config fields."""
    from zo_fl import config
    from zo_fl.config import check

    return len(check.flat(config.blocks()))


def cases() -> int:
    """Returns the number of cases that pytest collects."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return sum("::" in line for line in done.stdout.splitlines())


def of_folder(name: str) -> str:
    """Returns the number of files and lines of a folder."""
    files = sorted((ROOT / name).rglob("*.py"))
    return f"{len(files)} files, {lines(files):,} lines"


def main() -> None:
    """Prints the table."""
    package = ROOT / "zo_fl"
    rows = []
    for name, file in (("a zeroth-order method", "zo/methods"), ("FedAvg", "sgd/fedavg")):
        needed = closure(package / f"{file}.py")
        rows.append((f"{name} imports, all of it", f"{len(needed)} files, {lines(needed):,} lines"))
    read = [package / f"{file}.py" for file in ROUND]
    rows.append(
        ("one zeroth-order round, read in order", f"{len(read)} files, {lines(read):,} lines")
    )
    types = {**classes(package / "engine/algorithm.py"), **classes(package / "engine/keys.py")}
    types |= classes(package / "engine/types.py")
    rows.append(("types before the first round", str(len(types))))
    rows.append(("fields of Phase", str(types["Phase"])))
    rows.append(("config fields", str(config_fields())))
    rows += [(name, of_folder(name)) for name in ("zo_fl", "experiments", "benchmarks", "tests")]
    rows += [
        (f"  zo_fl/{p.name}", of_folder(f"zo_fl/{p.name}"))
        for p in sorted(package.iterdir())
        if p.is_dir() and p.name != "__pycache__"
    ]
    if "--cases" in sys.argv:
        rows.append(("cases of the tests", f"{cases():,}"))
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        print(f"{label:{width}}  {text}")


if __name__ == "__main__":
    main()
