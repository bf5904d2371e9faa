"""What documents point to is there."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for path in ROOT.rglob("*.md")
    if not {".git", ".venv", "venv", "runs", "build"} & set(path.relative_to(ROOT).parts)
)


def tracked():
    """Returns what git would hand to somebody else; None where there is no git."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    return set(done.stdout.splitlines()) if done.returncode == 0 and done.stdout else None


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_relative_link_leads_somewhere(document):
    text = (ROOT / document).read_text()
    files = tracked()
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" in link or link.startswith("mailto:"):
            continue
        target = (ROOT / document).parent / link
        assert target.exists(), f"{document} links to {link}"
        if files is not None:
            name = str(target.resolve().relative_to(ROOT))
            known = name in files or any(file.startswith(f"{name}/") for file in files)
            assert known, f"{document} links to {link}, which git does not track"


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_module_that_a_command_names_is_there(document):
    for module in re.findall(r"python -m (experiments[\w.]*)", (ROOT / document).read_text()):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or path.is_dir(), f"{document}: {module}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_file_of_the_package_that_is_named_is_there(document):
    names = re.findall(
        r"`((?:zo_fl|core|clients|algorithms|models|host|data|configs|tests|experiments)/[\w/.]+)`",
        (ROOT / document).read_text(),
    )
    for name in names:
        places = (ROOT / name, ROOT / "zo_fl" / name)
        assert any(place.exists() for place in places), f"{document} names {name}"
