"""The page holds everything, escaped, and needs nothing else."""

import html.parser
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import report
from experiments.reporting import runs
from tests.experiments import fake_sweeps

ROOT = Path(__file__).parents[2]
HOSTILE = '<script>alert("&")</script>'
VOID = {"meta", "img", "br", "link", "input"}


class Page(html.parser.HTMLParser):
    """What a browser sees: elements in balance, the text, and all that points elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.words, self.ids = [], [], [], [], []
        self.feed(text)
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def page(root):
    return Page(report.page(runs.read(root)))


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory):
    root = tmp_path_factory.mktemp("R")
    folders = fake_sweeps.make(
        root, name="hostile", rows=("High Res Only", HOSTILE), columns=("10/90",), title=HOSTILE
    )
    (folders[HOSTILE, "10/90", 2] / "summary.json").write_text("{")
    fake_sweeps.make(root, name="pivot", rows=("10/90",), columns=("2 of 4", "3 of 4"), seeds=(0,))
    (root / "torn").mkdir()
    (root / "torn" / "sweep.json").write_text("{")
    return root


def test_the_page_needs_nothing_else(sweeps):
    text = report.page(runs.read(sweeps))
    found = Page(text)
    assert found.links and all(link.startswith(("#", "data:")) for link in found.links)
    assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)
    assert not {"script", "link", "iframe"} & set(found.tags)
    assert "@import" not in text and "url(" not in text


def test_everything_is_escaped_and_every_row_is_there(sweeps):
    found = page(sweeps)
    assert found.text.count(HOSTILE) >= 3  # the title, the table, the costs
    for row in ("High Res Only", "10/90", "2 of 4", "3 of 4"):
        assert row in found.text
    assert found.tags.count("section") == 2 and found.tags.count("img") == 3


def test_commands_costs_configs_and_provenance_are_there(sweeps):
    found = page(sweeps)
    for text in (
        "python -m experiments.sweep --sweep=<s>",
        "1.50 MB",
        "2.50 MB",
        "1,234",
        "1:01",
        '"partition_seed": 0',
        "abcdef012345",
    ):
        assert text in found.text, text
    assert "details" in found.tags


def test_what_is_missing_is_listed(sweeps):
    found = page(sweeps)
    assert "Missing: 1 of 6" in found.text
    assert "10/90, seed 2: summary.json is damaged" in found.text
    assert "torn" in found.text


def test_a_folder_without_finished_runs_gives_a_page(tmp_path):
    folders = fake_sweeps.make(tmp_path, seeds=(0,))
    for folder in folders.values():
        for path in folder.iterdir():
            path.unlink()
    found = page(tmp_path)
    assert "Missing: 2 of 2" in found.text and "No run has begun yet" in found.text


@pytest.mark.slow
def test_the_command_writes_the_page_and_fails_in_one_line(tmp_path):
    fake_sweeps.make(tmp_path / "R", seeds=(0,))
    command = [sys.executable, "-m", "experiments.report", f"--runs={tmp_path / 'R'}"]
    got = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert got.returncode == 0, got.stderr
    assert Page((tmp_path / "R" / "report.html").read_text()).text
