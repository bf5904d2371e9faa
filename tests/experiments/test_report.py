"""The page holds everything, escaped, and needs nothing else."""

import html.parser
import json
import re
import shlex
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from experiments.reporting import commands, found, report_page
from tests.commands import run
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


def page(root):
    return Page(report_page.of(found.read(root)))


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
    text = report_page.of(found.read(sweeps))
    seen = Page(text)
    assert seen.links and all(link.startswith(("#", "data:")) for link in seen.links)
    assert {link[1:] for link in seen.links if link.startswith("#")} <= set(seen.ids)
    assert not {"script", "link", "iframe"} & set(seen.tags)
    assert "@import" not in text and "url(" not in text


@pytest.mark.slow
def test_everything_is_escaped_and_every_row_is_there(sweeps):
    seen = page(sweeps)
    assert seen.text.count(HOSTILE) >= 3  # the title, the table, the costs
    for row in ("High Res Only", "10/90", "2 of 4", "3 of 4"):
        assert row in seen.text
    assert seen.tags.count("section") == 2 and seen.tags.count("img") == 4


def test_commands_costs_configs_and_provenance_are_there(sweeps):
    seen = page(sweeps)
    for text in (
        "python -m experiments.sweep --sweep=<s>",
        "1.50 MB",
        "2.50 MB",
        "1,234",
        "1:01",
        '"partition_seed": 0',
        "abcdef012345",
    ):
        assert text in seen.text, text
    assert "details" in seen.tags


def test_what_is_missing_is_listed(sweeps):
    seen = page(sweeps)
    assert "Missing: 1 of 6" in seen.text
    assert "10/90, seed 2: summary.json is damaged" in seen.text
    assert "torn" in seen.text


def test_a_title_is_said_once(tmp_path):
    fake_sweeps.make(tmp_path, columns=("10/90", "50/50"))
    assert report_page.of(found.read(tmp_path)).count("A title") == 1


@pytest.mark.slow
def test_every_result_leads_to_the_commands_of_its_runs(sweeps):
    text = report_page.of(found.read(sweeps))
    targets = set(re.findall(r'<td><a href="#(hostile--\d)">', text))
    assert targets == {"hostile--0", "hostile--1"}
    for target in targets:
        block = text.split(f'id="{target}"')[1]
        command = Page(block.split('class="commands">')[1].split("</pre>")[0]).text
        assert command.count("python -m experiments.main --config=configs/quickstart.py") == 3
        assert "--config.seed=2 --config.data.partition_seed=2" in command


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # ml_collections loads files the old way
def test_the_command_of_a_plain_run_makes_the_same_config(tmp_path, monkeypatch):
    changes = {"heterofl.milestones": [3, 5], "heterofl.loss": "ce", "zo.lr": 0.5}
    given = fake_sweeps.config(changes | {"algorithm": "heterofl"})
    fake_sweeps.finish(tmp_path / "a", 0.5, given)
    (sweep,) = found.read(tmp_path).sweeps
    program, *arguments = shlex.split(commands.of_run(sweep, sweep.runs[0]))[2:]
    assert program == "experiments.main"
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    monkeypatch.setattr(sys, "argv", ["main", *arguments])  # where ml_collections looks for fields
    values(sys.argv)
    made = json.loads(json.dumps(values.config.to_dict()))
    for block in ("algorithm", "seed", "data", "model", "run", "heterofl"):
        assert made[block] == json.loads(json.dumps(given[block]))
    assert made["zo"] != given["zo"]  # HeteroFL does not read it


def test_a_folder_without_finished_runs_gives_a_page(tmp_path):
    folders = fake_sweeps.make(tmp_path, seeds=(0,))
    for folder in folders.values():
        for path in folder.iterdir():
            path.unlink()
    seen = page(tmp_path)
    assert "Missing: 2 of 2" in seen.text and "No run has begun yet" in seen.text


@pytest.mark.slow
def test_the_command_writes_the_page_and_fails_in_one_line(tmp_path):
    fake_sweeps.make(tmp_path / "R", seeds=(0,))
    got = run("-m", "experiments.report", f"--runs={tmp_path / 'R'}")
    assert got.returncode == 0, got.stderr
    assert Page((tmp_path / "R" / "report.html").read_text()).text
