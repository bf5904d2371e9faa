"""Campaigns: in which order a plan is worked through, and what is kept of a run."""

import json
import sys
import time
from pathlib import Path

import pytest

from experiments import campaign
from experiments.analysis import runs
from experiments.jobs import plan, pool, record
from tests.experiments import fake_sweeps
from zo_fl import config as configs
from zo_fl.config.sweeps import Point, Step, Sweep
from zo_fl.engine.fields import ConfigError

ACCURACY = {"fedavg": 0.4, "zowarmup": 0.5}
PLANS = sorted((Path(__file__).parents[2] / "experiments" / "plans").glob("*.py"))


def rows(config):
    points = [Point(name, "10/90", {"algorithm": name}) for name in ("zowarmup", "fedavg")]
    return Sweep("title", "", points, reference="fedavg")


STEPS = [Step("rows", rows, range(1)), Step("rows", rows, range(1, 3))]


@pytest.fixture
def began(monkeypatch):
    """Runs end at once; the list has their folders, relative to the working folder."""
    folders = []

    def run(chain, parallel, command, until):
        for job in chain:
            if not (job.folder / "summary.json").exists():
                folders.append(job.folder)
                one = configs.resolve(
                    configs.changed(configs.load("quickstart").to_dict(), job.overrides)
                )
                fake_sweeps.finish(job.folder, ACCURACY[one["algorithm"]], one)
        return {job.folder: pool.Status(pool.DONE) for job in chain}

    monkeypatch.setattr(pool, "run", run)
    return folders


def entries(root):
    config = configs.load("quickstart")
    found = [
        campaign.entries_of(step, config, {}, root / "work", root / "records") for step in STEPS
    ]
    return [entry for step in found for entry in step]


def names(began, root):
    return [str(folder.relative_to(root / "work")) for folder in began]


def test_what_is_done_lies_beside_the_plan_but_not_among_installed_files(monkeypatch, tmp_path):
    ours = campaign.find("table2_w16")
    assert campaign.default_records(ours) == ours.with_suffix("")
    monkeypatch.setattr(campaign, "PLANS", tmp_path)
    assert campaign.default_records(tmp_path / "a.py") == Path("records", "a")
    assert campaign.default_records(ours) == ours.with_suffix("")


def test_runs_go_by_worth_warm_ups_first_and_what_has_a_file_is_done(began, tmp_path):
    assert campaign.work(entries(tmp_path), "quickstart", float("inf")) == 0
    folders = [name for name in names(began, tmp_path) if not name.startswith("warmups")]
    assert folders == [
        f"rows/{row}--10-90/{seed}" for seed in range(3) for row in ("zowarmup", "fedavg")
    ]
    assert names(began, tmp_path)[0].startswith("warmups")
    began.clear()
    (tmp_path / "work").rename(tmp_path / "left on another machine")
    first = entries(tmp_path)[0]
    first.record.unlink()
    assert campaign.work(entries(tmp_path), "quickstart", float("inf")) == 0
    assert names(began, tmp_path)[-1] == "rows/zowarmup--10-90/0", "and nothing else but a warm-up"
    assert len(began) == 2


def test_what_is_kept_of_a_run_is_shown_as_its_folder_is(began, tmp_path):
    campaign.work(entries(tmp_path), "quickstart", float("inf"))
    shown = [
        runs.read_run(tmp_path / root / "rows" / "zowarmup--10-90" / "1", "zowarmup", "10/90", 1)
        for root in ("work", "records")
    ]
    made, kept = (run._replace(folder=None, config={}) for run in shown)
    assert made == kept and kept.state == runs.FINISHED
    assert kept.summary["final_accuracy"] == ACCURACY["zowarmup"]
    assert shown[1].config == configs.read_by(shown[0].config)
    assert runs.seconds_a_round(shown[0]) == runs.seconds_a_round(shown[1])


def test_the_pace_of_what_is_done_says_how_long_the_rest_takes(began, tmp_path, capsys):
    two = [entries(tmp_path)[:2], entries(tmp_path)[2:]]
    campaign.work(two[0], "quickstart", float("inf"))
    campaign.show(STEPS, two)
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "  rows, seeds 0 to 0: 2 of 2 done",
        "  rows, seeds 1 to 2: 0 of 4 done, 0:02 for 4 more",
    ]


def test_when_the_time_is_up_a_run_is_told_to_save(tmp_path):
    job = plan.Job("name", tmp_path / "run", {}, None)
    with pytest.raises(KeyboardInterrupt, match="the time is up"):
        command = [sys.executable, "-c", "import time; time.sleep(60)"]
        pool.run([job], 1, lambda jobs, after: command, until=time.monotonic() + 0.1)


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_all_runs_of_a_plan_have_configs_that_resolve_and_folders_of_their_own(path, tmp_path):
    made = configs.call(path, "get_plan")
    config = configs.load(made.config)
    found = [campaign.entries_of(step, config, {}, tmp_path, tmp_path / "r") for step in made.steps]
    jobs = [entry.chain[-1] for step in found for entry in step]
    assert len({job.folder for job in jobs}) == len(jobs)
    for job in jobs:
        configs.resolve(configs.changed(config.to_dict(), job.overrides))


def test_a_damaged_run_is_not_kept(tmp_path):
    fake_sweeps.finish(tmp_path / "0", 0.5, fake_sweeps.config({}))
    (tmp_path / "0" / "partition.json").write_text("{")
    with pytest.raises(Exception, match=r"partition.json is damaged"):
        record.keep(tmp_path / "0", tmp_path / "kept" / "0.json")
    assert not (tmp_path / "kept").exists()


def test_a_plan_is_found_by_its_name_or_path_and_others_are_listed(tmp_path):
    (path,) = (one for one in PLANS if one.stem == "table2_w16")
    assert campaign.find("table2_w16") == campaign.find(str(path)) == path
    for wrong, words in ((None, "no --plan given; there are: .*table2_w16"), ("x", "no plan 'x'")):
        with pytest.raises(ConfigError, match=words):
            campaign.find(wrong)


def test_what_was_done_by_another_config_is_refused_not_taken_for_this_one(began, tmp_path):
    campaign.work(entries(tmp_path), "quickstart", float("inf"))
    for path in tmp_path.glob("records/rows/*/0.json"):
        content = json.loads(path.read_text())
        content["config"]["config"] = configs.plain(content["config"]["config"])
        path.write_text(json.dumps(content))  # an earlier version had 0 for names
    config = configs.load("quickstart")
    config.zo.lr *= 2
    arguments = (tmp_path / "work", tmp_path / "records")
    with pytest.raises(ConfigError, match=r"is of a run with config\.zo\.lr=.*; delete the file"):
        campaign.entries_of(STEPS[0], config, {}, *arguments)
    config = configs.load("quickstart")
    config.run.rounds_per_jit += 1
    campaign.entries_of(STEPS[0], config, {}, *arguments)
    next(arguments[1].glob("rows/*/0.json")).write_text("{")
    with pytest.raises(ConfigError, match=r"0.json is damaged; delete it"):
        campaign.entries_of(STEPS[0], config, {}, *arguments)
