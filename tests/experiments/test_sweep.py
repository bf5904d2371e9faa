"""Sweeps: what they expand to, and how their runs are run. The runs are fakes, but for one test."""

import importlib
import json
import sys
import time
from pathlib import Path

import pytest

from experiments.sweeping import display, jobs, pool, record, running
from tests import commands
from zo_fl import config as configs
from zo_fl import experiment
from zo_fl.config import sweeps
from zo_fl.config.sweeps import Point, Sweep
from zo_fl.engine.errors import ConfigError
from zo_fl.host.metrics import read_metrics

ROOT = Path(__file__).parents[2]
SWEEPS = sorted(
    path.stem
    for path in (ROOT / "configs" / "sweeps").glob("*.py")
    if path.stem not in ("__init__", "common")
)
CONFIGS = ("quickstart", "cifar10_10_90")

# Stands in for a run: notes that it began, then ends as told, in time for none to be seen waiting.
FAKE = """
import json, pathlib, signal, sys, time
folder, after, how = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
folder.mkdir(parents=True, exist_ok=True)
with (folder / "began").open("a") as file:
    file.write(after + "\\n")
print("some output")
def stop(*_):
    (folder / "saved").touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
if how == "hang":
    (folder / "ready").touch()
    time.sleep(60)
if how == "fail":
    print("error: it is broken", file=sys.stderr)
    sys.exit(2)
summary = {"rounds": 4, "final_accuracy": 0.5, "uplink_bytes": 1, "wall_seconds": 1.0}
summary["diverged_round"] = 3 if how == "nc" else None
(folder / "summary.json").write_text(json.dumps(summary))
sys.exit(1 if how == "nc" else 0)
"""


def config(name="quickstart"):
    return importlib.import_module(f"configs.{name}").get_config()


def plan(points, root, seeds=(0,), given=None, name="quickstart"):
    given = given or {}
    base = config(name)
    base.update_from_flattened_dict(given)
    return jobs.plan(Sweep("title", "", points), base, given, seeds, root, "name")


def point(row, algorithm="zowarmup", **overrides):
    changed = {field.replace("__", "."): value for field, value in overrides.items()}
    return Point(row, "c", {"algorithm": algorithm, **changed})


class Watch:
    """A display that keeps the greatest number of runs at a time, and may interrupt."""

    def __init__(self, interrupt_when=None):
        self.most, self.interrupt_when = 0, interrupt_when

    def update(self, job, statuses):
        running = [s for s in statuses.values() if s.state == pool.RUNNING]
        self.most = max(self.most, len(running))
        if self.interrupt_when is not None and running:
            deadline = time.monotonic() + 20
            while not self.interrupt_when.exists():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            raise KeyboardInterrupt


def run(planned, how=None, parallel=2, display=None):
    """Runs fakes; ``how`` says for a part of a folder's name how a run ends."""

    def command(of_one, after):
        (job,) = of_one
        ends = [end for part, end in (how or {}).items() if part in str(job.folder)]
        return [sys.executable, "-c", FAKE, str(job.folder), str(after), *(ends or ["fine"])]

    statuses = pool.run(planned, parallel, command, display or Watch())
    return {job.name: statuses[job.folder] for job in planned}


def began(folder):
    path = folder / "began"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("base", CONFIGS)
@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_file_expands_to_known_fields(name, base, tmp_path):
    given = config(base)
    before = given.to_dict()
    made = jobs.load_sweep(ROOT / "configs" / "sweeps" / f"{name}.py", given)
    assert given.to_dict() == before, "a sweep file must not write to the config"
    planned = jobs.plan(made, given, {}, range(2), tmp_path, name)
    assert len({job.folder for job in planned}) == len(planned)
    assert made.title and made.quantity in ("accuracy", "validation", "seconds")
    rows = {point.row for point in made.points}
    assert made.reference == "" or made.reference in rows
    module = importlib.import_module(f"configs.sweeps.{name}")
    assert f"--sweep=configs/sweeps/{name}.py" in module.__doc__.replace("\\\n", " ")


@pytest.mark.slow
def test_every_method_of_the_methods_sweep_can_be_built():
    base = config()
    base.data.name, base.run.num_devices = "synthetic", 1
    for point in importlib.import_module("configs.sweeps.methods").get_sweep(base).points:
        changes = configs.changed(configs.resolve(base), point.overrides)
        built = experiment.build(configs.resolve(changes))
        rounds = sum(phase.num_rounds for phase in built.phases)
        alone = point.row == sweeps.HIGH_RES_ONLY
        assert rounds == (base.warmup.num_rounds if alone else sweeps.total_rounds(base)), point


def test_at_one_seed_all_points_have_its_partition_and_tiers(tmp_path):
    planned = plan([point("a"), point("b", "zo")], tmp_path, seeds=(3, 4))
    for seed in (3, 4):
        of_seed = [job for job in planned if job.name.endswith(f"seed {seed}")]
        assert len(of_seed) == 3
        for job in of_seed:
            assert job.overrides["seed"] == job.overrides["data.partition_seed"] == seed


def test_equal_warmups_are_one_and_a_shorter_one_starts_a_longer_one(tmp_path):
    points = [
        point("a", "fedavg"),
        point("b", "zowarmup", zo__lr=0.5),
        point("long", "fedavg", warmup__num_rounds=60),
        point("other", "zowarmup", warmup__lr=0.1),
        point("scratch", "zo"),
    ]
    planned = plan(points, tmp_path)
    by_row = {job.folder.parent.name.split("--")[0]: job for job in planned}
    warmups = {job.folder: job for job in planned if job.folder.parent.name == "warmups"}
    assert len(warmups) == 3 and all(
        job.overrides["algorithm"] == "fedavg" for job in warmups.values()
    )
    assert by_row["a"].after == by_row["b"].after
    long = warmups[by_row["long"].after]
    assert long.overrides["warmup.num_rounds"] == 60 and long.after == by_row["a"].after
    assert warmups[by_row["other"].after].after is None
    assert by_row["scratch"].after is None
    order = [job.folder for job in planned]
    assert all(
        job.after is None or order.index(job.after) < order.index(job.folder) for job in planned
    )


def test_a_warmup_has_the_faults_of_its_points_and_the_server_s_rule(tmp_path):
    fields = {"faults__byzantine": 0.2, "robust__rule": "clip"}
    planned = plan([point("a"), point("b", **fields)], tmp_path)
    of = {job.folder: job for job in planned}
    honest, lied = (of[job.after] for job in planned if job.after)
    assert lied.folder != honest.folder and "faults.byzantine" not in honest.overrides
    assert lied.overrides["faults.byzantine"] == 0.2 and lied.overrides["robust.rule"] == "clip"


def test_a_method_that_ends_by_choosing_is_no_start_of_a_longer_one(tmp_path):
    planned = plan([point("a", "ridge+zo"), point("b", "ridge+zo", ridge__num_rounds=2)], tmp_path)
    starts = [job for job in planned if job.folder.parent.name == "warmups"]
    assert len(starts) == 2 and all(job.after is None for job in starts)


def test_a_warmup_does_not_depend_on_what_comes_after_it(tmp_path):
    one = plan([point("a")], tmp_path, given={"zo.lr": 0.3})[0]
    two = plan([point("b", "fedavg+decomfl")], tmp_path)[0]
    assert one.folder == two.folder and one.overrides == two.overrides
    assert plan([point("b")], tmp_path, given={"data.alpha": 1.0})[0] != two


def test_the_numbers_of_the_pivot_sweep_scale_with_the_config():
    for name in CONFIGS:
        given = config(name)
        total = sweeps.total_rounds(given)
        made = importlib.import_module("configs.sweeps.pivot").get_sweep(given)
        sums = [
            p.overrides["warmup.num_rounds"] + p.overrides["zo.num_rounds"] for p in made.points
        ]
        assert sums == [total] * 8
        by_itself = [p for p in made.points if p.column.startswith("by itself")]
        assert all(p.overrides["warmup.hand_over"] for p in by_itself) and len(by_itself) == 2
    assert [p.column for p in made.points][3] == "200 of 500"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    (
        (
            {"zo.epz": 1.0},
            "unknown field config.zo.epz; did you mean config.zo.eps",
        ),
        ({"zoo": 1.0}, "unknown field config.zoo"),
        ({"zo.num_rounds": "many"}, "config.zo.num_rounds='many'"),
    ),
)
def test_bad_overrides_fail_in_one_line(tmp_path, overrides, expected):
    with pytest.raises(ConfigError) as caught:
        plan([Point("a", "b", overrides)], tmp_path)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_two_points_of_one_folder_must_be_the_same(tmp_path):
    assert len(plan([point("a b", "zo"), point("a b", "zo")], tmp_path)) == 1
    with pytest.raises(ConfigError, match="have the same folder"):
        plan([point("a b", "zo"), point("A-b", "zo")], tmp_path)


def test_a_warmup_runs_once_before_its_points_which_are_told_of_it(tmp_path):
    watch = Watch()
    planned = plan([point("a", "fedavg"), point("b"), point("c", "zo")], tmp_path)
    statuses = run(planned, display=watch)
    assert {status.state for status in statuses.values()} == {pool.DONE}
    warmup, a, b, c = planned
    assert began(warmup.folder) == ["None"] and began(c.folder) == ["None"]
    assert began(a.folder) == began(b.folder) == [str(warmup.folder)]
    assert watch.most == 2


def test_what_is_finished_is_skipped_and_what_failed_is_run_again(tmp_path):
    planned = plan([point("good", "zo"), point("bad", "mezo")], tmp_path)
    first = run(planned, {"bad--": "fail"})
    good, bad = planned
    assert first[good.name].state == pool.DONE and first[bad.name].state == pool.FAILED
    assert first[bad.name].message == "exit status 2: error: it is broken"
    assert "some output" in pool.log_path(bad).read_text()
    again = run(planned)
    assert {status.state for status in again.values()} == {pool.DONE}
    assert len(began(good.folder)) == 1 and len(began(bad.folder)) == 2
    assert again[good.name].seconds is None, "an earlier command's work counts in no estimate"


def test_a_failed_warmup_blocks_its_points_and_longer_warmups_only(tmp_path):
    points = [point("a"), point("long", warmup__num_rounds=60), point("scratch", "zo")]
    planned = plan(points, tmp_path)
    statuses = run(planned, {str(planned[0].folder): "fail"})
    states = [statuses[job.name].state for job in planned]
    assert states == [pool.FAILED] + [pool.BLOCKED] * 3 + [pool.DONE]
    assert str(planned[0].folder) in statuses[planned[2].name].message


def test_a_run_that_diverged_is_a_result_and_nothing_starts_from_it(tmp_path):
    planned = plan([point("a")], tmp_path)
    statuses = run(planned, {"warmups": "nc"})
    assert {status.state for status in statuses.values()} == {pool.DONE}
    assert began(planned[1].folder) == ["None"]


def test_exit_status_1_without_a_summary_is_a_failure(tmp_path, monkeypatch):
    planned = plan([point("a", "zo")], tmp_path)
    command = [sys.executable, "-c", "raise RuntimeError('a bug')"]
    statuses = pool.run(planned, 1, lambda *_: command, Watch())
    assert statuses[planned[0].folder].message == "exit status 1: RuntimeError: a bug"


@pytest.mark.parametrize(
    "output, expected",
    (
        ("warning: x\nerror: no such data\nException ignored in: <y>\n", "error: no such data"),
        (
            "Traceback\n  File\nKeyError: 'a'\nException ignored in: <function f>\n"
            "Traceback\nImportError: sys.meta_path is None, Python is likely shutting down\n",
            "KeyError: 'a'",
        ),
        ("round 1\nround 2\n\n", "round 2"),
        ("", "no output"),
    ),
)
def test_the_line_that_is_shown_of_a_failure_is_the_one_that_tells_most(output, expected, tmp_path):
    path = tmp_path / "0.log"
    path.write_text(output)
    assert pool.last_useful_line(path) == expected


def test_an_interrupt_lets_the_runs_save_and_starts_no_more(tmp_path):
    planned = plan([point("a", "zo"), point("b", "zo")], tmp_path)
    watch = Watch(interrupt_when=planned[0].folder / "ready")
    with pytest.raises(KeyboardInterrupt):
        run(planned, {"a--": "hang"}, parallel=1, display=watch)
    assert (planned[0].folder / "saved").exists() and not planned[1].folder.exists()


def test_failures_are_reported_at_the_end_with_their_log(tmp_path, capfd, monkeypatch):
    planned = plan([point("good", "zo"), point("bad", "zo", zo__lr=0.5)], tmp_path)

    def command(job, after, config_file):
        how = "fail" if "bad--" in str(job.folder) else "fine"
        return [sys.executable, "-c", FAKE, str(job.folder), str(after), how]

    monkeypatch.setattr(running, "command_line", command)
    assert running.run(planned, 2, "c.py") == 1
    out, err = capfd.readouterr()
    assert "1 of 2 runs are finished" in out
    assert "bad, c, seed 0" in err and "it is broken" in err and "0.log" in err
    monkeypatch.setattr(
        running, "command_line", lambda job, *_: [sys.executable, "-c", FAKE, job.folder, "", ""]
    )
    assert running.run(planned, 2, "c.py") == 0


def test_an_interrupted_sweep_says_how_to_go_on(tmp_path, capfd, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pool, "run", interrupted)
    assert running.run(plan([point("a")], tmp_path), 1, "c.py") == 130
    assert "to resume, run the same command" in capfd.readouterr().err


def test_the_command_of_a_run_names_all_that_it_needs(tmp_path):
    job = plan([point("a", zo__augment=True, zo__lr=1e-5)], tmp_path, seeds=(7,))[1]
    command = running.command_line(job, job.after, "configs/quickstart.py")
    assert command[1:4] == ["-m", "experiments.main", "--config=configs/quickstart.py"]
    expected = {
        "--config.algorithm=zowarmup",
        "--config.zo.augment=true",
        "--config.zo.lr=1e-05",
        "--config.seed=7",
        "--config.data.partition_seed=7",
        f"--workdir={job.folder}",
        f"--warm_start={job.after}",
    }
    assert expected <= set(command)


def test_the_record_is_extended_by_seeds_and_kept_from_other_configs(tmp_path):
    path = tmp_path / "name" / "sweep.json"
    made = Sweep("title", "Table 2", [point("a")])

    def write(seeds, given=None, points=made):
        record.write(path, record.make(points, "c.py", given or {}, "command", seeds))

    write(range(2))
    write(range(1, 4))
    assert json.loads(path.read_text())["seeds"] == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match="change it back, or --workdir"):
        write(range(2), {"zo.lr": 0.1})
    with pytest.raises(ConfigError, match="other overrides for 'a'"):
        write(range(2), points=Sweep("title", "", [point("a", "zo")]))
    path.write_text('{"seeds": [0, ')
    write(range(2))
    assert json.loads(path.read_text())["points"][0]["folder"] == "a--c"


def test_the_time_left_is_from_the_mean_of_what_this_command_finished():
    states = [
        pool.Status(pool.DONE),
        pool.Status(pool.DONE, 10.0),
        pool.Status(pool.DONE, 20.0),
        pool.Status(pool.RUNNING),
        pool.Status(pool.RUNNING),
        *[pool.Status(pool.WAITING)] * 5,
    ]
    statuses = {Path(str(i)): status for i, status in enumerate(states)}
    assert display.seconds_left(statuses, 2) == 15 * (5 + 1) / 2
    assert display.counts(statuses) == {"done": 3, "running": 2, "failed": 0, "left": 5}
    assert display.seconds_left({Path("a"): pool.Status(pool.WAITING)}, 1) is None


def call(*arguments):
    return commands.run("-m", "experiments.sweep", *arguments)


@pytest.mark.slow
def test_bad_input_is_one_line_and_status_2_and_writes_nothing(tmp_path):
    bad = "--config.seed=1"  # the unknown fields are found by what all commands share
    got = call(
        "--config=configs/quickstart.py",
        "--sweep=configs/sweeps/splits.py",
        f"--workdir={tmp_path / 'R'}",
        bad,
    )
    assert got.returncode == 2 and got.stderr.count("\n") == 1
    assert "use --first_seed and --seeds" in got.stderr
    assert not (tmp_path / "R").exists()


def test_a_sweep_file_that_is_missing_or_broken_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match="did you mean splits"):
        jobs.load_sweep("configs/sweeps/split.py", config())
    path = tmp_path / "broken.py"
    path.write_text("def get_sweep(config):\n    return config.zo.epz\n")
    with pytest.raises(ConfigError, match="broken.py, line 2: AttributeError"):
        jobs.load_sweep(path, config())


@pytest.mark.slow
def test_a_real_run_starts_after_a_real_warmup_and_neither_is_repeated(
    tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(ROOT)
    tiny = {"data.name": "synthetic", "model.name": "mlp", "model.norm": "none"}
    tiny |= {"warmup.num_rounds": 1, "zo.num_rounds": 1, "run.num_devices": 1}
    planned = plan([point("a")], tmp_path, given=tiny)
    assert running.run(planned, 2, "configs/quickstart.py") == 0, capfd.readouterr()
    warmup, run = [read_metrics(job.folder / "metrics.jsonl") for job in planned]
    assert len(warmup) == 1 and len(run) == 2
    assert run[0] == warmup[0], "to the fraction of a second: it was not computed again"
    assert running.run(planned, 2, "configs/quickstart.py") == 0
    assert "2 runs, 2 of them finished before" in capfd.readouterr().out


def test_points_that_differ_in_a_number_alone_may_be_one_program(tmp_path):
    points = [point("a", zo__lr=0.1), point("b", zo__lr=0.2, zo__tau=0.5), point("c")]
    points += [point("other S", zo__num_directions=9), point("no rate", zo__lr=0.0)]
    points += [point("best eps", zo__eps=0.0), point("ends", warmup__stop="plateau")]
    points += [point("keeps", "fedavg+head_zo", head_zo__cache=True), point("head", "head_zo")]
    planned = plan(points, tmp_path, seeds=range(2), name="quickstart")
    found = jobs.side_by_side(planned, config("quickstart"))
    names = {job.folder: job.name.split(",")[0] for job in planned}
    groups: dict = {}
    for folder, one in found.items():
        groups.setdefault(one.key, []).append(names[folder].partition(" ")[0])
    several = [group for group in groups.values() if len(group) > 1]
    assert several == [["a", "b", "c", "no"]] * 2  # of each seed
    alone = {names[job.folder] for job in planned} - {names[folder] for folder in found}
    assert {"best eps", "ends", "keeps"} <= alone and "head" not in alone
    numbers = {names[folder]: one.numbers for folder, one in found.items()}
    assert numbers["b"]["zo.lr"] == 0.2 and numbers["b"]["zo.tau"] == 0.5
    assert "num_directions" not in str(numbers)


def test_that_points_may_be_one_program_is_said_where_that_was_measured_to_be_quicker(tmp_path):
    points = [
        point("a", zo__lr=0.1),
        point("b", zo__lr=0.2),
        point("other S", zo__num_directions=9),
    ]
    said = {}
    for model in ("mlp", "cnn"):
        given = {"model.name": model, "model.norm": "none"}
        planned = plan(points, tmp_path, seeds=range(2), given=given, name="quickstart")
        said[model] = jobs.suggestion(jobs.side_by_side(planned, config("quickstart")))
    assert said["cnn"] is None
    assert said["mlp"].startswith("4 of these runs differ") and "2 programs" in said["mlp"]


@pytest.mark.slow
def test_points_as_one_program_end_as_alone(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    tiny = {"data.name": "synthetic", "model.name": "mlp", "model.norm": "none"}
    tiny |= {"warmup.num_rounds": 1, "zo.num_rounds": 2, "run.num_devices": 1}
    points, ends = [point("a", zo__lr=0.001), point("b", zo__lr=0.004)], []
    for name in ("together", "alone"):
        planned = plan(points, tmp_path / name, given=tiny)
        base = config("quickstart")
        base.update_from_flattened_dict(tiny)
        alike = jobs.side_by_side(planned, base) if name == "together" else {}
        assert running.run(planned, 1, "configs/quickstart.py", alike=alike) == 0
        assert "3 of 3 runs are finished" in capfd.readouterr().out
        ends.append([read_metrics(job.folder) for job in planned])
        logs = [pool.log_path(job).read_text() for job in planned[1:]]
        assert ("one program with a, c, seed 0" in logs[1]) == (name == "together")
    for one, other in zip(*ends, strict=True):
        for row, expected in zip(one, other, strict=True):
            assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
    assert ends[0][1][-1]["update_norm"] != ends[0][2][-1]["update_norm"]


@pytest.mark.slow
def test_list_prints_the_runs_and_runs_none(tmp_path):
    got = call(
        "--config=configs/quickstart.py",
        "--sweep=configs/sweeps/splits.py",
        "--seeds=2",
        f"--workdir={tmp_path / 'R'}",
        "--list",
    )
    assert got.returncode == 0, got.stderr
    assert got.stdout.count("\n") == 2 * (5 + 10)
    assert "splits/zowarmup--10-90/1: algorithm=zowarmup" in got.stdout
    assert not (tmp_path / "R").exists()


def test_methods_that_begin_alike_share_that_beginning_whatever_it_is(tmp_path):
    planned = plan([point("a", "heterofl+zo"), point("b", "heterofl+decomfl")], tmp_path)
    warmup, a, b = planned
    assert warmup.overrides["algorithm"] == "heterofl" and a.after == b.after == warmup.folder
