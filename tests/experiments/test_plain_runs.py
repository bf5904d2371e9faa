"""Runs that no sweep knows of get a table, pictures and a page too."""

import json

import pytest

from experiments.reporting import (
    comparison,
    figures,
    found,
    picture_files,
    plain_runs,
    report_page,
    result_tables,
    runs,
    table_files,
)
from tests import commands
from tests.experiments import fake_sweeps


def finish(folder, value=0.5, seed=0, **changes):
    fields = {field.replace("__", "."): new for field, new in changes.items()}
    config = fake_sweeps.config({"data.partition_seed": seed} | fields, seed)
    fake_sweeps.finish(folder, value, config)


def only(root):
    (sweep,) = found.read(root).sweeps
    return sweep


def test_runs_that_differ_in_seeds_alone_are_one_row_named_by_what_differs(tmp_path):
    for seed, value in enumerate((0.4, 0.5, 0.6)):
        finish(tmp_path / f"a{seed}", value, seed, zo__lr=0.1)
    finish(tmp_path / "b" / "deep", 0.3, zo__lr=0.2)
    sweep = only(tmp_path)
    (table,) = result_tables.tables_of(sweep, comparison.cells(sweep))
    assert table.headers[1:5] == ["n", "at the pivot", "at the end", "gain"]
    assert table.rows == [
        ["zo.lr=0.1", "3/3", "45.0(10.0)", "50.0(10.0)", "5.0(0.0)", "1.50 MB", "2.50 MB", "1:01"],
        ["zo.lr=0.2", "1/1", "25.0", "30.0", "5.0", "1.50 MB", "2.50 MB", "1:01"],
    ]


def test_fields_that_an_algorithm_does_not_read_part_no_rows(tmp_path):
    finish(tmp_path / "a", seed=0, algorithm="fedavg", zo__lr=0.1)
    finish(tmp_path / "b", seed=1, algorithm="fedavg", zo__lr=0.2)
    finish(tmp_path / "c", seed=0, zo__lr=0.2)
    assert only(tmp_path).rows == ["fedavg", "zowarmup"]


def test_runs_that_differ_in_many_fields_are_named_by_their_folder(tmp_path):
    many = {f"zo__{name}": 7 for name in ("num_rounds", "num_directions", "lr", "eps", "tau")}
    finish(tmp_path / "a")
    finish(tmp_path / "b", **many)
    assert only(tmp_path).rows == ["a", "b"]


def test_a_repeated_run_is_no_further_sample(tmp_path):
    finish(tmp_path / "a")
    finish(tmp_path / "b")
    read = found.read(tmp_path)
    assert len(read.sweeps[0].runs) == 1
    (problem,) = read.problems
    assert str(tmp_path / "b") in problem and "left out" in problem


def test_an_unfinished_run_has_a_row_and_a_line_and_a_damaged_one_is_named(tmp_path):
    finish(tmp_path / "a", zo__lr=0.1)
    finish(tmp_path / "b", zo__lr=0.2)
    (tmp_path / "b" / "summary.json").unlink()
    finish(tmp_path / "c")
    (tmp_path / "c" / "config.json").write_text("{")
    read = found.read(tmp_path)
    (sweep,) = read.sweeps
    assert [len(cell.values) for cell in comparison.cells(sweep)] == [1, 0]
    (line,) = runs.unfinished(sweep)
    assert line == "zo.lr=0.2, seed 0: not finished: no summary.json, 4 rounds so far"
    assert read.problems == [f"{tmp_path / 'c'}: config.json is damaged"]
    curves = figures.of(sweep)["runs-curves"].axes[0]
    assert {"zo.lr=0.1", "zo.lr=0.2"} <= {line.get_label() for line in curves.lines}


def test_runs_of_sweeps_and_their_warm_ups_are_no_plain_runs(tmp_path):
    fake_sweeps.make(tmp_path)
    finish(tmp_path / "warmups" / "0123")
    assert [sweep.name for sweep in found.read(tmp_path).sweeps] == ["s"]
    finish(tmp_path / "mine")
    names = [sweep.name for sweep in found.read(tmp_path).sweeps]
    assert names == ["s", plain_runs.NAME]


def test_the_folder_of_one_run_is_enough(tmp_path):
    finish(tmp_path)
    assert only(tmp_path).rows == ["zowarmup"]


@pytest.mark.slow
def test_tables_plots_and_a_page_are_written(tmp_path):
    for seed in (0, 1):
        finish(tmp_path / str(seed), seed=seed)
    sweep = only(tmp_path)
    table_files.write(sweep, tmp_path / "tables")
    assert "zowarmup" in (tmp_path / "tables" / "runs.md").read_text()
    names = [path.name for path in picture_files.write(sweep, tmp_path / "plots")]
    assert names == ["runs.png", "runs-curves.png"]
    text = report_page.of(found.read(tmp_path))
    assert 'href="#runs--0"' in text and text.count("<img") == 2


@pytest.mark.slow
def test_a_folder_with_nothing_is_bad_input_for_every_command(tmp_path):
    for name in ("tables", "plots", "report"):
        got = commands.run("-m", f"experiments.{name}", f"--runs={tmp_path}")
        assert got.returncode == 2 and got.stderr.count("\n") == 1, got
        assert str(tmp_path) in got.stderr and "python -m experiments.main" in got.stderr
    assert list(tmp_path.iterdir()) == []


def test_settings_without_a_value_for_every_version_still_have_names(tmp_path):
    """A field that only a later version has parts two rows that share all they both have."""
    finish(tmp_path / "old")
    finish(tmp_path / "new")
    path = tmp_path / "old" / "config.json"
    content = json.loads(path.read_text())
    del content["config"]["zo"]["precision"]
    fake_sweeps.write(path, content)
    assert only(tmp_path).rows == ["new", "old"]
