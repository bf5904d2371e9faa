"""Means, spreads and paired differences of sweeps, and how they are written."""

import csv
import io
import json
import math

import pytest
from rich.console import Console

from experiments.analysis import comparison, tables
from experiments.analysis.text_table import TextTable
from tests import commands
from tests.experiments import fake_sweeps
from tests.experiments.fake_sweeps import only


def by_row(sweep):
    return {cell.row: cell for cell in comparison.cells(sweep)}


def printed(sweep, width=200):
    console = Console(width=width, file=io.StringIO())
    tables.show(sweep, console)
    return console.file.getvalue()


def test_the_paired_interval_is_student_s():
    """Differences 1, 2, 6: mean 3, s = sqrt(7), t(0.975, 2) = 4.302653, half width 6.5724."""
    ours, reference = {0: 11.0, 1: 22.0, 2: 36.0, 9: 1.0}, {0: 10.0, 1: 20.0, 2: 30.0, 8: 2.0}
    got = comparison.paired(ours, reference)
    assert got.n == 3 and math.isclose(got.mean, 3.0)
    assert math.isclose(got.half_width, 4.302653 * math.sqrt(7 / 3), rel_tol=1e-6)
    assert comparison.paired({0: 2.0}, {0: 1.0}) == (1.0, None, 1)
    assert comparison.paired({0: 2.0}, {1: 1.0}) is None


def test_mean_and_spread_are_over_seeds_and_differences_are_paired(tmp_path):
    values = {"High Res Only": (0.20, 0.30, 0.40), "ZOWarmUp": (0.22, 0.33, 0.44)}
    fake_sweeps.make(tmp_path, accuracy=lambda row, column, seed: values[row][seed])
    cells = by_row(only(tmp_path))
    assert tables.cell_text(cells["High Res Only"]) == "30.0(10.0)"
    assert tables.cell_text(cells["ZOWarmUp"]) == "33.0(11.0)"
    assert cells["High Res Only"].difference is None
    difference = cells["ZOWarmUp"].difference
    assert math.isclose(difference.mean, 3.0) and difference.n == 3
    assert math.isclose(difference.half_width, 4.302653 / math.sqrt(3), rel_tol=1e-6)
    assert [round(gain, 9) for gain in cells["ZOWarmUp"].gains] == [5.0] * 3


def test_runs_whose_loss_did_not_stay_finite_are_counted_and_left_out(tmp_path):
    folders = fake_sweeps.make(
        tmp_path, rows=("High Res Only", "some", "none"), accuracy=lambda *_: 0.5
    )
    for (row, _, seed), folder in folders.items():
        if row == "none" or (row, seed) == ("some", 0):
            path = folder / "summary.json"
            fake_sweeps.write(path, json.loads(path.read_text()) | {"diverged_round": 3})
    cells = by_row(only(tmp_path))
    assert tables.cell_text(cells["none"]) == "nc"
    assert tables.cell_text(cells["some"]) == "50.0(0.0), 1 nc"
    assert cells["some"].difference.n == 2 and cells["none"].difference is None
    assert "nc: did not converge" in printed(only(tmp_path))


def test_a_run_at_chance_stays_in_means_and_pairs_and_is_marked(tmp_path):
    """Pairs that are left out by their outcome would shift the mean of those that stay."""
    values = {"High Res Only": (0.3, 0.1, 0.2), "ZOWarmUp": (0.3, 0.2, 0.4)}
    fake_sweeps.make(tmp_path, accuracy=lambda row, column, seed: values[row][seed])
    cells = by_row(only(tmp_path))
    assert tables.cell_text(cells["High Res Only"]) == "20.0(10.0)†"
    assert tables.cell_text(cells["ZOWarmUp"]) == "30.0(10.0)"
    difference = cells["ZOWarmUp"].difference
    assert difference.n == 3 and math.isclose(difference.mean, 10.0)
    assert "3/3, 1 at chance" in printed(only(tmp_path))


def test_a_cell_may_be_median_seconds_of_the_last_phase_or_the_last_validation(tmp_path):
    fake_sweeps.make(tmp_path / "timed", quantity="seconds", accuracy=lambda *_: 0.1)
    assert set(by_row(only(tmp_path / "timed"))["ZOWarmUp"].values.values()) == {0.25}
    folders = fake_sweeps.make(tmp_path / "tuned", quantity="validation")
    for folder in folders.values():
        rows = [{"round": 1, "phase": "zo", "val_accuracy": 0.9, "test_accuracy": 0.1}]
        rows.append({"round": 2, "phase": "zo", "val_accuracy": 0.125, "test_accuracy": 0.5})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert set(by_row(only(tmp_path / "tuned"))["ZOWarmUp"].values.values()) == {12.5}


HOSTILE = r"a|b*c_d`e<f>&g%h$i#j{k}~l^m\n"


def test_markdown_and_latex_are_escaped():
    table = TextTable("", ["", HOSTILE], [[HOSTILE, "[1 − 2]"]])
    for line in table.markdown().splitlines():
        assert line.replace("\\\\", "").replace("\\|", "").count("|") == 3
    latex = table.latex()
    assert all(latex.count(mark) == latex.count(f"\\{mark}") for mark in "%#_")
    assert latex.count("&") - latex.count(r"\&") == 2 and r"{[}1 $-$ 2] \\" in latex


def test_the_files_hold_the_numbers_in_full_and_a_table_like_the_paper_s(tmp_path):
    rows, columns = ("High Res Only", 'odd, "row"'), ("10/90", "50/50")
    fake_sweeps.make(tmp_path, rows=rows, columns=columns, accuracy=lambda *_: 1 / 3)
    tables.write(only(tmp_path), tmp_path / "out")
    with (tmp_path / "out" / "s.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert lines[2]["row"] == 'odd, "row"' and lines[2]["pairs"] == "3"
    assert math.isclose(float(lines[2]["mean"]), 100 / 3, rel_tol=1e-15)
    assert lines[2]["paper_mean"] == ""
    assert "|   | 10/90 | 50/50 |" in (tmp_path / "out" / "s.md").read_text()
    assert (tmp_path / "out" / "s.tex").read_text().count(r"\begin{tabular}") == 2


def test_numbers_are_never_cut_on_a_narrow_screen():
    headers = ["", *(f"column {i}" for i in range(9))]
    rows = [[name, *(f"{i}.{j}(1.0)" for i in range(9))] for j, name in enumerate(("ab " * 9, "c"))]
    for width in (40, 80, 200):
        console = Console(width=width, file=io.StringIO())
        TextTable("", headers, rows).print(console)
        words = console.file.getvalue().split()
        assert all(words.count(text) == 1 for row in rows for text in row[1:])


@pytest.mark.slow
def test_the_commands_show_write_and_name_what_is_missing(tmp_path):
    folders = fake_sweeps.make(tmp_path, seeds=(0, 1))
    (folders["ZOWarmUp", "10/90", 0] / "summary.json").write_text("{")
    for name, said in {
        "tables": "ZOWarmUp, 10/90, seed 0",
        "plots": "1 of 4 runs missing",
        "pareto": "written to",
        "report": "written to",
    }.items():
        more = ["--memory=false"] if name == "pareto" else []
        got = commands.run("-m", f"experiments.{name}", f"--runs={tmp_path}", *more)
        assert got.returncode == 0 and said in got.stdout, got
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*.*")}
    assert {f"tables/s.{end}" for end in ("csv", "md", "tex")} <= written
    assert {f"plots/{name}" for name in ("s.png", "s.svg", "s-curves.png")} <= written
    assert {f"pareto/pareto.{end}" for end in ("png", "svg", "md", "csv", "json")} <= written
    page = (tmp_path / "report.html").read_text()
    assert "What a low-resource client pays" in page and "Missing: 1 of 4" in page
