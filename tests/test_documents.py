"""What documents point to is there."""

import re
import subprocess
from pathlib import Path

import yaml

import zo_fl

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for path in ROOT.rglob("*.md")
    if not {".git", ".venv", "venv", "runs", "build", "_build", "jupyter_execute"}
    & set(path.relative_to(ROOT).parts)
)
TEXTS = {document: (ROOT / document).read_text() for document in DOCUMENTS}


def tracked():
    """Returns what git would hand to somebody else; None where there is no git."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    return set(done.stdout.splitlines()) if done.returncode == 0 and done.stdout else None


def anchors(text):
    """Returns the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_the_anchor_of_a_heading_is_github_s():
    assert anchors("# How it's built, **now**\n") == {"how-its-built-now"}


def test_every_relative_link_leads_somewhere():
    files = tracked()
    for document, text in TEXTS.items():
        for link, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)[^)]*\)", text):
            if "://" in link or link.startswith("mailto:"):
                continue
            target = (ROOT / document).parent / link if link else ROOT / document
            assert target.exists(), f"{document} links to {link}"
            if anchor:
                known = anchors(target.read_text())
                assert anchor in known, f"{document} links to {link}#{anchor}"
            if files is not None:
                name = str(target.resolve().relative_to(ROOT))
                known = name in files or any(file.startswith(f"{name}/") for file in files)
                assert known, f"{document} links to {link}, which git does not track"


def test_every_module_that_a_command_names_is_there():
    for document, text in TEXTS.items():
        for module in re.findall(r"python -m (?:zo_fl\.)?(experiments[\w.]*)", text):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").exists() or path.is_dir(), f"{document}: {module}"


def test_every_file_of_the_package_that_is_named_is_there():
    rooms = "zo_fl|engine|zo|sgd|heads|wrap|models|host|data|configs|tests|experiments|benchmarks"
    for document, text in TEXTS.items():
        for name in re.findall(rf"`((?:{rooms})/[\w/.]+)`", text):
            places = (ROOT / name, ROOT / "zo_fl" / name)
            assert any(place.exists() for place in places), f"{document} names {name}"


def test_the_citation_is_of_this_version_and_refers_to_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == zo_fl.__version__
    assert "arXiv:2509.03503" in str(citation["references"])
