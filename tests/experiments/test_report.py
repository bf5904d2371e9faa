"""The page holds everything, escaped, and needs nothing else."""

import html.parser

import pytest

from experiments.analysis import found
from experiments.analysis import page as report
from tests.experiments import fake_sweeps

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


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    root = tmp_path_factory.mktemp("R")
    folders = fake_sweeps.make(root, name="hostile", rows=("High Res Only", HOSTILE), title=HOSTILE)
    (folders[HOSTILE, "10/90", 2] / "summary.json").write_text("{")
    fake_sweeps.make(root, name="pivot", rows=("10/90",), columns=("2 of 4", "3 of 4"), seeds=(0,))
    (root / "torn").mkdir()
    (root / "torn" / "sweep.json").write_text("{")
    return report.of(found.read(root), root)


def test_the_page_needs_nothing_else(text):
    seen = Page(text)
    assert seen.links and all(link.startswith(("#", "data:")) for link in seen.links)
    assert {link[1:] for link in seen.links if link.startswith("#")} <= set(seen.ids)
    assert not {"script", "link", "iframe"} & set(seen.tags)
    assert "@import" not in text and "url(" not in text


@pytest.mark.slow
def test_everything_is_escaped_and_every_row_is_there(text):
    seen = Page(text)
    assert seen.text.count(HOSTILE) >= 3  # the title, the table, the costs
    for row in ("High Res Only", "10/90", "2 of 4", "3 of 4"):
        assert row in seen.text
    assert seen.tags.count("section") == 2 and seen.tags.count("img") == 4


def test_commands_costs_configs_and_provenance_are_there(text):
    seen = Page(text)
    costs = ("1.50 MB", "2.50 MB", "1,234", "1:01")
    for part in (
        "python -m experiments.sweep --sweep=<s>",
        *costs,
        '"partition_seed": 0',
        "abcdef012345",
    ):
        assert part in seen.text, part
    assert "--config.seed=2 --config.data.partition_seed=2" in seen.text
    assert {"#hostile--0", "#hostile--1"} <= set(seen.links)
    assert "Missing: 1 of 6" in seen.text and "torn" in seen.text
    assert "10/90, seed 2: summary.json is damaged" in seen.text
    assert "max-height" not in text  # of a box of commands every line is in sight


@pytest.mark.parametrize("others", (0, 2))
def test_code_that_is_no_checkout_has_a_version_and_no_commit(others, tmp_path, monkeypatch):
    fake_sweeps.make(tmp_path, name="a", rows=("x",), seeds=range(others))
    monkeypatch.setitem(fake_sweeps.PROVENANCE, "git", None)
    monkeypatch.setitem(fake_sweeps.PROVENANCE, "versions", {"zo_fl": "0.2"})
    fake_sweeps.make(tmp_path, name="b", rows=("x",), seeds=(0,))
    seen = Page(report.of(found.read(tmp_path), tmp_path))
    assert "None" not in seen.text.partition("started")[0] and "zo_fl 0.2" in seen.text
    assert ("commit" in seen.text) == ("commit abcdef012345; none in 1 of 3 runs" in seen.text)
    assert ("commit" in seen.text) == bool(others)
