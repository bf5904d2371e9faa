"""Runs and sweeps are found in a folder, damaged ones are named, and the rest is shown."""

import json
import shlex

from absl import flags

from experiments import cli
from experiments.analysis import comparison, found, runs, tables
from tests.experiments import fake_sweeps
from tests.experiments.fake_sweeps import only
from zo_fl import config as configs


def finish(folder, value=0.5, seed=0, **changes):
    fields = {field.replace("__", "."): new for field, new in changes.items()}
    config = fake_sweeps.config({"data.partition_seed": seed} | fields, seed)
    fake_sweeps.finish(folder, value, config)


def test_runs_that_differ_in_seeds_alone_are_one_row_named_by_what_differs(tmp_path):
    for seed, value in enumerate((0.4, 0.5, 0.6)):
        finish(tmp_path / f"a{seed}", value, seed, zo__lr=0.1)
    finish(tmp_path / "b" / "deep", 0.3, zo__lr=0.2)
    sweep = only(tmp_path)
    (table,) = tables.tables_of(sweep, comparison.cells(sweep))
    assert table.headers[1:5] == ["n", "at the pivot", "at the end", "gain"]
    assert table.rows == [
        ["zo.lr=0.1", "3/3", "45.0(10.0)", "50.0(10.0)", "5.0(0.0)", "1.50 MB", "2.50 MB", "1:01"],
        ["zo.lr=0.2", "1/1", "25.0", "30.0", "5.0", "1.50 MB", "2.50 MB", "1:01"],
    ]


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


def test_runs_of_sweeps_and_their_warm_ups_are_no_plain_runs(tmp_path):
    fake_sweeps.make(tmp_path)
    finish(tmp_path / "warmups" / "0123")
    assert [sweep.name for sweep in found.read(tmp_path).sweeps] == ["s"]
    finish(tmp_path / "mine")
    assert [sweep.name for sweep in found.read(tmp_path).sweeps] == ["s", found.PLAIN]
    (tmp_path / "s" / "sweep.json").unlink()  # its runs are plain ones then
    assert set(only(tmp_path).rows) == {"fedavg", "zowarmup"}


DAMAGES = (
    ("summary.json", None, runs.UNFINISHED, "no summary.json"),
    ("summary.json", '{"final_accuracy": 0.', runs.DAMAGED, "summary.json is damaged"),
    ("summary.json", "{}", runs.DAMAGED, "no final_accuracy"),
    ("summary.json", '{"final_accuracy": null, "diverged_round": null}', runs.DAMAGED, "None"),
    ("config.json", None, runs.DAMAGED, "config.json is missing"),
    ("partition.json", "{", runs.DAMAGED, "partition.json is damaged"),
)


def test_a_damaged_run_is_named_and_the_rest_is_shown(tmp_path):
    folders = fake_sweeps.make(tmp_path)
    for name, content, state, problem in DAMAGES:
        path = folders["ZOWarmUp", "10/90", 1] / name
        whole = path.read_text()
        path.unlink()
        if content is not None:
            path.write_text(content)
        sweep = only(tmp_path)
        states = [run.state for run in sweep.runs]
        assert states.count(state) == 1 and states.count(runs.FINISHED) == 5
        (line,) = runs.unfinished(sweep)
        assert problem in line and "ZOWarmUp, 10/90, seed 1" in line
        assert [len(cell.values) for cell in comparison.cells(sweep)] == [3, 2]
        path.write_text(whole)


def test_a_damaged_record_is_named_and_other_sweeps_are_shown(tmp_path):
    fake_sweeps.make(tmp_path, name="good")
    fake_sweeps.make(tmp_path, name="bad")
    path = tmp_path / "bad" / "sweep.json"
    whole = json.loads(path.read_text())
    for content in ("{", "[]", "{}", whole | {"points": [{"row": 1}]}, whole | {"seeds": ["a"]}):
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        read = found.read(tmp_path)
        assert [sweep.name for sweep in read.sweeps] == ["good"]
        assert len(read.problems) == 1 and str(tmp_path / "bad") in read.problems[0]


def test_the_command_of_a_plain_run_makes_the_same_config(tmp_path, monkeypatch):
    changes = {"heterofl.milestones": [3, 5], "heterofl.momentum": 0.5, "zo.lr": 0.5}
    given = fake_sweeps.config(changes | {"algorithm": "heterofl"})
    earlier = configs.plain(given)  # with 0 for names
    fake_sweeps.finish(tmp_path / "a", 0.5, earlier)
    sweep = only(tmp_path)
    python, m, program, *arguments = shlex.split(found.command_of(sweep, sweep.runs[0]))
    assert (python, m, program) == ("python", "-m", "experiments.main")
    values = flags.FlagValues()
    flags.DEFINE_string("config", None, "", flag_values=values)
    flags.DEFINE_multi_string("set", [], "", flag_values=values)
    values([program, *map(cli._as_set, arguments)])
    monkeypatch.setattr(flags, "FLAGS", values)
    made = json.loads(json.dumps(cli.resolved_config()))
    for block in {"algorithm", "seed", "run"} | configs.blocks_read(["heterofl"]):
        assert made[block] == json.loads(json.dumps(given[block]))
    assert made["zo"] != given["zo"]  # HeteroFL does not read it
