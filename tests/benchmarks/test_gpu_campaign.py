"""The steps of the GPU campaign: each once, within the time, results kept."""

import json
import math
import time

import pytest

from benchmarks import contest, gpu_campaign, measure, workloads
from benchmarks.gpu_campaign import STEPS, TIME_IS_UP, Step
from zo_fl import config
from zo_fl.engine.fields import ConfigError

FIGURES = {"seconds": [2.0, 1.0, 3.0], "images": 600.0, "forward_seconds": [1.0]}


def in_time(seconds=math.inf):
    return time.monotonic() + seconds


def test_finished_steps_are_not_done_again_and_failed_ones_are(tmp_path, monkeypatch, capsys):
    ran = []

    def run(command, rounds, timeout):
        ran.append(command[-1])
        if "W3" in command[-1] and len(ran) < 3:
            raise ConfigError("out of memory")
        return FIGURES

    monkeypatch.setattr(contest, "run", run)
    steps = [Step("a", "W2"), Step("b", "W3"), Step("c", "W4")]
    assert gpu_campaign.run(steps, tmp_path / "r", in_time(), [], None) == 1
    assert "b: out of memory" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["a.json", "c.json"]
    assert gpu_campaign.run(steps, tmp_path / "r", in_time(), [], None) == 0
    assert ran == [f"--workload={name}" for name in ("W2", "W3", "W4", "W3")]


def test_when_the_time_is_up_nothing_begins_and_nothing_is_left(tmp_path):
    steps = [Step("a", "W6-zo")]
    assert gpu_campaign.run(steps, tmp_path, in_time(0), [], None) == TIME_IS_UP
    assert gpu_campaign.run(steps, tmp_path, in_time(0.3), ["--tiny"], None) == TIME_IS_UP
    assert not list(tmp_path.iterdir())


def test_a_failure_is_said_also_when_the_time_is_up(tmp_path, monkeypatch):
    def run(command, rounds, timeout):
        time.sleep(0.2)
        raise ConfigError("out of memory")

    monkeypatch.setattr(contest, "run", run)
    steps = [Step("a", "W2"), Step("b", "W3")]
    assert gpu_campaign.run(steps, tmp_path, in_time(0.1), [], None) == 1


def test_every_step_is_a_workload_with_allowed_changes():
    assert len({step.name for step in STEPS}) == len(STEPS)
    for step in STEPS:
        assert step.workload in workloads.WORKLOADS
        changes = dict(map(measure.change, step.changes))
        config.resolve(config.changed(config.resolve({}), changes))


@pytest.mark.nightly
@pytest.mark.slow
def test_a_step_with_a_trace_runs_as_it_is(tmp_path):
    changes = ("warmup.local_epochs=2", "warmup.batch_size=4")
    step = Step(STEPS[0].name, "W6-fedavg", changes, traced=True)
    assert gpu_campaign.run([step], tmp_path, in_time(600), ["--tiny"], None) == 0
    figures = json.loads((tmp_path / f"{step.name}.json").read_text())["zo_fl"]
    assert figures["images"] == 2 * 4 * 2 and len(figures["seconds"]) == 3
    assert figures["forward_seconds"] is None
    assert list((tmp_path / step.name).rglob("*.xplane.pb"))
    assert f"| {step.name} | zo_fl |" in gpu_campaign.table(tmp_path)


def test_the_cell_says_how_its_run_ended(tmp_path):
    assert gpu_campaign.run_cell(tmp_path, in_time(600), ["--help"]) == 0
    assert gpu_campaign.run_cell(tmp_path, in_time(600), ["--no_such_flag"]) == 1
    assert gpu_campaign.run_cell(tmp_path, in_time(0), []) == TIME_IS_UP
