"""Sweeps: the runs they expand to, and how those are run. Most runs here are fakes."""

import contextlib
import importlib
import io
import json
import sys
import time
from pathlib import Path

import pytest

from experiments.jobs import launch, plan, pool, record
from zo_fl import config as configs
from zo_fl.config import sweeps, warm_starts
from zo_fl.config.sweeps import Point, Sweep
from zo_fl.engine.fields import ConfigError
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


def jobs_of(points, root, seeds=(0,), given=None):
    given, base = given or {}, config()
    base.update_from_flattened_dict(given)
    return plan.jobs_of(Sweep("title", "", points), base, given, seeds, root, "name")


def point(row, algorithm="zowarmup", **overrides):
    changed = {field.replace("__", "."): value for field, value in overrides.items()}
    return Point(row, "c", {"algorithm": algorithm, **changed})


class Watch:
    """A display that keeps the greatest number of runs at a time, and may interrupt."""

    def __init__(self, interrupt_when=None):
        self.most, self.interrupt_when = 0, interrupt_when

    def update(self, job, statuses):
        running = sum(status.state == pool.RUNNING for status in statuses.values())
        self.most = max(self.most, running)
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

    statuses = pool.run(planned, parallel, command, (display or Watch()).update)
    return {job.name: statuses[job.folder] for job in planned}


def began(folder):
    path = folder / "began"
    return path.read_text().splitlines() if path.exists() else []


def test_every_sweep_file_expands_to_known_fields_and_writes_nothing_to_the_config(tmp_path):
    for name in SWEEPS:
        for given in map(config, CONFIGS):
            before = given.to_dict()
            made = plan.load_sweep(name, given)
            assert given.to_dict() == before, name
            planned = plan.jobs_of(made, given, {}, [0], tmp_path, name)
            assert len({job.folder for job in planned}) == len(planned), name
            assert made.title and made.quantity in ("accuracy", "validation", "seconds"), name
            assert made.reference in {"", *(point.row for point in made.points)}, name
            for one in made.points if name == "pivot" else ():
                rounds = [one.overrides[f"{block}.num_rounds"] for block in ("warmup", "zo")]
                assert sum(rounds) == sweeps.total_rounds(given)
        module = importlib.import_module(f"configs.sweeps.{name}")
        assert f"--sweep=configs/sweeps/{name}.py" in module.__doc__.replace("\\\n", " "), name


def test_at_one_seed_all_points_have_its_partition_and_tiers(tmp_path):
    planned = jobs_of([point("a"), point("b", "zo")], tmp_path, seeds=(3, 4))
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
    planned = jobs_of(points, tmp_path)
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
    # Earlier versions had 0 for names: their warm-ups are found.
    shared = warm_starts.shared(configs.resolve(config()), ["fedavg"])
    names = {"model.network": "none"}
    earlier = {f: 0 if value == names.get(f, "all") else value for f, value in shared.items()}
    assert earlier["warmup.cohort_size"] == 0
    assert by_row["a"].after.name == plan._digest([earlier, 40])
    # It does not depend on what comes after it.
    later = jobs_of([point("later", "fedavg+decomfl")], tmp_path, given={"zo.lr": 0.3})
    assert later[0].folder == by_row["a"].after
    order = [job.folder for job in planned]
    assert all(
        job.after is None or order.index(job.after) < order.index(job.folder) for job in planned
    )


def test_a_warmup_has_the_faults_of_its_points_and_the_server_s_rule(tmp_path):
    fields = {"faults__byzantine": 0.2, "robust__rule": "clip"}
    planned = jobs_of([point("a"), point("b", **fields)], tmp_path)
    of = {job.folder: job for job in planned}
    honest, lied = (of[job.after] for job in planned if job.after)
    assert lied.folder != honest.folder and "faults.byzantine" not in honest.overrides
    assert lied.overrides["faults.byzantine"] == 0.2 and lied.overrides["robust.rule"] == "clip"


def test_a_method_that_ends_by_choosing_is_no_start_of_a_longer_one(tmp_path):
    planned = jobs_of(
        [point("a", "ridge+zo"), point("b", "ridge+zo", ridge__num_rounds=2)], tmp_path
    )
    starts = [job for job in planned if job.folder.parent.name == "warmups"]
    assert len(starts) == 2 and all(job.after is None for job in starts)


def test_two_points_of_one_folder_must_be_the_same(tmp_path):
    assert len(jobs_of([point("a b", "zo"), point("a b", "zo")], tmp_path)) == 1
    with pytest.raises(ConfigError, match="have the same folder"):
        jobs_of([point("a b", "zo"), point("A-b", "zo")], tmp_path)


def test_a_warmup_runs_once_before_its_points_which_are_told_of_it(tmp_path):
    watch = Watch()
    planned = jobs_of([point("a", "fedavg"), point("b"), point("c", "zo")], tmp_path)
    statuses = run(planned, display=watch)
    assert {status.state for status in statuses.values()} == {pool.DONE}
    warmup, a, b, c = planned
    assert began(warmup.folder) == ["None"] and began(c.folder) == ["None"]
    assert began(a.folder) == began(b.folder) == [str(warmup.folder)]
    assert watch.most == 2


def test_what_is_finished_is_skipped_and_what_failed_is_run_again(tmp_path):
    planned = jobs_of([point("good", "zo"), point("bad", "mezo")], tmp_path)
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
    planned = jobs_of(points, tmp_path)
    statuses = run(planned, {str(planned[0].folder): "fail"})
    states = [statuses[job.name].state for job in planned]
    assert states == [pool.FAILED] + [pool.BLOCKED] * 3 + [pool.DONE]
    assert str(planned[0].folder) in statuses[planned[2].name].message


def test_a_run_that_diverged_is_a_result_and_nothing_starts_from_it(tmp_path):
    planned = jobs_of([point("a")], tmp_path)
    statuses = run(planned, {"warmups": "nc"})
    assert {status.state for status in statuses.values()} == {pool.DONE}
    assert began(planned[1].folder) == ["None"]


def test_an_interrupt_lets_the_runs_save_and_starts_no_more(tmp_path):
    planned = jobs_of([point("a", "zo"), point("b", "zo")], tmp_path)
    watch = Watch(interrupt_when=planned[0].folder / "ready")
    with pytest.raises(KeyboardInterrupt):
        run(planned, {"a--": "hang"}, parallel=1, display=watch)
    assert (planned[0].folder / "saved").exists() and not planned[1].folder.exists()


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
    path.unlink()
    made = Sweep("title", "Table 2", [point("a", zo__batch_size="all")])
    write(range(2), {"data.num_examples": "all"}, points=made)
    path.write_text(path.read_text().replace('"all"', "0"))  # as earlier versions had it
    write(range(3), {"data.num_examples": "all"}, points=made)
    path.write_text('{"seeds": [0, ')
    write(range(2))
    assert json.loads(path.read_text())["points"][0]["folder"] == "a--c"


def test_points_that_differ_in_a_number_alone_may_be_one_program(tmp_path):
    points = [point("a", zo__lr=0.1), point("b", zo__lr=0.2, zo__tau=0.5), point("c")]
    points += [point("other S", zo__num_directions=9), point("no rate", zo__lr=0.0)]
    points += [point("best eps", zo__eps="auto"), point("ends", warmup__stop="plateau")]
    points += [
        point("keeps", "fedavg+head_zo", head_zo__cache=True),
        point("head", "head_zo", head_zo__cache=False),
    ]
    planned = jobs_of(points, tmp_path, seeds=range(2))
    found = plan.side_by_side(planned, config())
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
    assert plan.suggestion(found) is None  # a CNN
    dense = {folder: one._replace(dense=True) for folder, one in found.items()}
    assert plan.suggestion(dense).startswith("8 of these runs differ from others")


@pytest.mark.nightly
@pytest.mark.slow
def test_real_runs_start_after_a_real_warmup_as_one_program_and_nothing_is_repeated(tmp_path):
    given = {"data.name": "synthetic", "model.name": "mlp", "model.norm": "none"}
    given |= {"warmup.num_rounds": 1, "zo.num_rounds": 2, "run.num_devices": 1}
    points = [point("a", zo__lr=0.001), point("b", zo__lr=0.004)]
    planned, base = jobs_of(points, tmp_path, given=given), config()
    base.update_from_flattened_dict(given)
    alike, printed = plan.side_by_side(planned, base), []
    for _ in range(2):
        with contextlib.chdir(ROOT), contextlib.redirect_stdout(io.StringIO()) as out:
            assert launch.run(planned, 2, "configs/quickstart.py", alike=alike) == 0
        printed.append(out.getvalue())
    assert "3 of 3 runs are finished" in printed[0]
    assert "3 runs, 3 of them finished before" in printed[1]
    warmup, a, b = (read_metrics(job.folder) for job in planned)
    assert [len(rows) for rows in (warmup, a, b)] == [1, 3, 3]
    # To the fraction of a second: the warm-up was not computed again.
    assert a[0] == b[0] == warmup[0] and a[-1]["update_norm"] != b[-1]["update_norm"]
    logs = [pool.log_path(job).read_text() for job in planned]
    assert ["one program with a, c, seed 0" in log for log in logs] == [False, False, True]
