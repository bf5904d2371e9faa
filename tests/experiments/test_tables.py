"""Means, spreads and paired differences of sweeps, and how they are written."""

import csv
import io
import json
import math

import pytest
from rich.console import Console

from experiments.reporting import (
    comparison,
    figures,
    found,
    report_page,
    result_tables,
    runs,
    table_files,
    text_tables,
)
from experiments.reporting.text_tables import TextTable
from tests import commands
from tests.experiments import fake_sweeps


def only(root):
    read = found.read(root)
    assert len(read.sweeps) == 1
    return read.sweeps[0]


def by_row(sweep):
    return {cell.row: cell for cell in comparison.cells(sweep)}


def printed(sweep):
    console = Console(width=200, file=io.StringIO())
    table_files.show(sweep, console)
    return console.file.getvalue()


def test_the_paired_interval_is_student_s():
    """Differences 1, 2, 6: mean 3, s = sqrt(7), t(0.975, 2) = 4.302653, half width 6.5724."""
    got = comparison.paired(
        {0: 11.0, 1: 22.0, 2: 36.0, 9: 1.0}, {0: 10.0, 1: 20.0, 2: 30.0, 8: 2.0}
    )
    assert got.n == 3 and math.isclose(got.mean, 3.0)
    assert math.isclose(got.half_width, 4.302653 * math.sqrt(7 / 3), rel_tol=1e-6)


def test_one_pair_has_no_interval_and_none_no_difference():
    assert comparison.paired({0: 2.0}, {0: 1.0}) == (1.0, None, 1)
    assert comparison.paired({0: 2.0}, {1: 1.0}) is None


def test_differences_that_are_all_alike_have_an_interval_without_width():
    got = comparison.paired({0: 0.5, 1: 0.7, 2: 0.9}, {0: 0.4, 1: 0.6, 2: 0.8})
    assert got.n == 3 and math.isclose(got.mean, 0.1) and got.half_width < 1e-12


def test_mean_and_spread_are_over_seeds_and_differences_are_paired(tmp_path):
    values = {"High Res Only": (0.20, 0.30, 0.40), "ZOWarmUp": (0.22, 0.33, 0.44)}
    fake_sweeps.make(tmp_path, accuracy=lambda row, column, seed: values[row][seed])
    cells = by_row(only(tmp_path))
    assert result_tables.cell_text(cells["High Res Only"]) == "30.0(10.0)"
    assert result_tables.cell_text(cells["ZOWarmUp"]) == "33.0(11.0)"
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
    assert result_tables.cell_text(cells["none"]) == "nc"
    assert result_tables.cell_text(cells["some"]) == "50.0(0.0), 1 nc"
    assert cells["some"].difference.n == 2 and cells["none"].difference is None
    assert "nc: did not converge" in printed(only(tmp_path))


def test_a_run_at_chance_stays_in_means_and_pairs_and_is_marked(tmp_path):
    """Pairs that are left out by their outcome would shift the mean of those that stay."""
    values = {"High Res Only": (0.3, 0.1, 0.2), "ZOWarmUp": (0.3, 0.2, 0.4)}
    fake_sweeps.make(tmp_path, accuracy=lambda row, column, seed: values[row][seed])
    cells = by_row(only(tmp_path))
    assert result_tables.cell_text(cells["High Res Only"]) == "20.0(10.0)†"
    assert result_tables.cell_text(cells["ZOWarmUp"]) == "30.0(10.0)"
    difference = cells["ZOWarmUp"].difference
    assert difference.n == 3 and math.isclose(difference.mean, 10.0)
    text = printed(only(tmp_path))
    assert "3/3, 1 at chance" in text and "at chance; they count in means" in text


@pytest.mark.parametrize(
    ("name", "content", "state", "problem"),
    (
        ("summary.json", None, runs.UNFINISHED, "no summary.json"),
        ("summary.json", '{"final_accuracy": 0.', runs.DAMAGED, "summary.json is damaged"),
        ("summary.json", "[]", runs.DAMAGED, "summary.json is damaged"),
        ("summary.json", "{}", runs.DAMAGED, "no final_accuracy"),
        ("summary.json", '{"final_accuracy": "x", "diverged_round": null}', runs.DAMAGED, "'x'"),
        ("summary.json", '{"final_accuracy": null, "diverged_round": null}', runs.DAMAGED, "None"),
        ("config.json", None, runs.DAMAGED, "config.json is missing"),
        ("config.json", "\x00", runs.DAMAGED, "config.json is damaged"),
        ("partition.json", "{", runs.DAMAGED, "partition.json is damaged"),
    ),
)
def test_a_damaged_run_is_named_and_the_rest_is_shown(tmp_path, name, content, state, problem):
    folders = fake_sweeps.make(tmp_path)
    path = folders["ZOWarmUp", "10/90", 1] / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    sweep = only(tmp_path)
    states = [run.state for run in sweep.runs]
    assert states.count(state) == 1 and states.count(runs.FINISHED) == 5
    line = runs.unfinished(sweep)[0]
    assert problem in line and "ZOWarmUp, 10/90, seed 1" in line
    assert line in printed(sweep) and len(by_row(sweep)["ZOWarmUp"].values) == 2


NO_POINT = (
    '{"title": "", "table": "", "reference": "", "quantity": "", "config": "", "command": "", '
    '"seeds": [0], "points": [{"row": 1}]}'
)
NO_SEED = NO_POINT.replace("[0]", '["a"]')


@pytest.mark.parametrize(
    "content", ("{", "[]", "{}", '{"title": 3}', "", "\x00", NO_POINT, NO_SEED)
)
def test_a_damaged_record_is_named_and_other_sweeps_are_shown(tmp_path, content):
    fake_sweeps.make(tmp_path, name="good")
    fake_sweeps.make(tmp_path, name="bad")
    (tmp_path / "bad" / "sweep.json").write_text(content)
    read = found.read(tmp_path)
    assert [sweep.name for sweep in read.sweeps] == ["good"]
    assert len(read.problems) == 1 and str(tmp_path / "bad") in read.problems[0]


def test_odd_values_in_other_files_hurt_nothing(tmp_path):
    folders = fake_sweeps.make(tmp_path, quantity="seconds")
    odd = {
        "config.json": '{"config": [1], "provenance": 2}',
        "partition.json": '{"num_classes": 0}',
        "metrics.jsonl": '{"phase": "zo"}\n7\n{"round": 1, "phase": "zo", "seconds": null}\n',
    }
    for folder in folders.values():
        for name, content in odd.items():
            (folder / name).write_text(content)
    assert printed(only(tmp_path))
    assert figures.of(only(tmp_path)) == {} and report_page.of(found.read(tmp_path))


def test_runs_that_lost_their_record_are_plain_runs_and_a_record_without_runs_is_shown(tmp_path):
    fake_sweeps.make(tmp_path / "a")
    (tmp_path / "a" / "s" / "sweep.json").unlink()
    assert only(tmp_path / "a").rows == ["fedavg", "zowarmup"]
    fake_sweeps.make(tmp_path / "b", rows=())
    assert printed(only(tmp_path / "b"))


def test_what_is_in_no_table_is_not_printed_twice(tmp_path):
    fake_sweeps.make(tmp_path, columns=("10/90", "50/50"))
    assert printed(only(tmp_path)).count("A title") == 1


def test_seconds_are_the_median_of_the_last_phase(tmp_path):
    fake_sweeps.make(tmp_path, quantity="seconds", accuracy=lambda *_: 0.1)
    sweep = only(tmp_path)
    assert set(by_row(sweep)["ZOWarmUp"].values.values()) == {0.25}
    assert "seconds a round" in printed(sweep)


def test_what_is_tuned_shows_the_last_accuracy_on_validation_examples(tmp_path):
    folders = fake_sweeps.make(tmp_path, quantity="validation")
    for folder in folders.values():
        rows = [{"round": 1, "phase": "zo", "val_accuracy": 0.9, "test_accuracy": 0.1}]
        rows.append({"round": 2, "phase": "zo", "val_accuracy": 0.125, "test_accuracy": 0.5})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sweep = only(tmp_path)
    assert set(by_row(sweep)["ZOWarmUp"].values.values()) == {12.5}
    assert "validation examples" in printed(sweep)


HOSTILE = r"a|b*c_d`e<f>&g%h$i#j{k}~l^m\n"


def test_markdown_and_latex_are_escaped():
    table = TextTable("t", ["", HOSTILE], [[HOSTILE, "1 − 2"]])
    lines = text_tables.markdown(table).splitlines()
    assert len(lines) == 3
    for line in lines:
        unescaped = line.replace("\\\\", "").replace("\\|", "")
        assert unescaped.count("|") == 3
    escaped = text_tables.escape_latex(HOSTILE)
    for mark in "&%$#_{}":
        assert f"\\{mark}" in escaped
    assert r"\textbackslash{}n" in escaped and r"\textasciitilde{}" in escaped
    assert text_tables.escape_latex("[a]") == "{[}a]"
    latex = text_tables.latex(table)
    assert latex.count("&") - latex.count(r"\&") == 2 and r"1 $-$ 2 \\" in latex


def test_csv_holds_the_numbers_in_full(tmp_path):
    fake_sweeps.make(tmp_path, rows=("High Res Only", 'odd, "row"'), accuracy=lambda *_: 1 / 3)
    table_files.write(only(tmp_path), tmp_path / "out")
    with (tmp_path / "out" / "s.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert lines[1]["row"] == 'odd, "row"' and math.isclose(
        float(lines[1]["mean"]), 100 / 3, rel_tol=1e-15
    )
    assert lines[1]["pairs"] == "3" and lines[1]["paper_mean"] == ""


def test_a_table_of_several_columns_also_looks_like_the_paper_s(tmp_path):
    fake_sweeps.make(tmp_path, columns=("10/90", "50/50"))
    table_files.write(only(tmp_path), tmp_path / "out")
    text = (tmp_path / "out" / "s.md").read_text()
    assert "|  | 10/90 | 50/50 |" in text or "|   | 10/90 | 50/50 |" in text
    assert text.count("ZOWarmUp") >= 3
    assert (tmp_path / "out" / "s.tex").read_text().count(r"\begin{tabular}") == 2


def test_numbers_are_never_cut_where_the_screen_is_narrow(tmp_path):
    fake_sweeps.make(tmp_path, rows=("High Res Only", "a name of many words " * 3))
    console = Console(width=60, file=io.StringIO())
    table_files.show(only(tmp_path), console)
    lines = console.file.getvalue().split("Cells:")[0]
    assert "…" not in lines and "1/3" not in lines and "3/3" in lines


@pytest.mark.slow
def test_the_command_shows_writes_and_fails_in_one_line(tmp_path):
    folders = fake_sweeps.make(tmp_path / "R")
    (folders["ZOWarmUp", "10/90", 0] / "summary.json").write_text("{")
    got = commands.run("-m", "experiments.tables", f"--runs={tmp_path / 'R'}")
    assert got.returncode == 0, got.stderr
    assert "ZOWarmUp, 10/90, seed 0" in got.stdout
    written = sorted(path.name for path in (tmp_path / "R" / "tables").iterdir())
    assert written == ["s.csv", "s.md", "s.tex"]
    (tmp_path / "empty").mkdir()
    for name, words in {"nowhere": "--runs", "empty": "experiments.main"}.items():
        got = commands.run("-m", "experiments.tables", f"--runs={tmp_path / name}")
        assert got.returncode == 2 and got.stderr.count("\n") == 1 and words in got.stderr
        assert not got.stdout and not (tmp_path / name / "tables").exists()


def test_a_table_wider_than_the_terminal_goes_on_below_with_its_names():
    headers = ["", *(f"column {i}" for i in range(9))]
    numbers = [[f"{10 * row + i}.0(1.0)" for i in range(9)] for row in range(2)]
    rows = [["FedAvg of everyone", *numbers[0]], ["ridge", *numbers[1]]]
    rows.append(["clipped", *["–"] * 8, "99.9"])
    out = io.StringIO()
    for width in (40, 80, 200):
        console = Console(file=out, width=width)
        console.print(text_tables.Terminal(TextTable("", headers, rows)))
        lines = out.getvalue().splitlines()
        out.truncate(out.seek(0))
        assert max(map(len, lines)) <= width
        words = [word for line in lines for word in line.split()]
        assert all(words.count(number) == 1 for row in numbers for number in row)
        parts = sum("column" in line for line in lines)
        assert sum("FedAvg of everyone" in line for line in lines) == parts
        assert sum("clipped" in line for line in lines) == 1  # where it has something
        assert (parts == 1) == (width == 200)
