"""What is said of a zeroth-order phase is what a direct computation says."""

import contextlib
import io
import json
import math
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import diagnose
from experiments.inspection import diagnosis, states
from experiments.inspection import diagnosis_page as page
from experiments.inspection.diagnosis import Bought, Diagnosis, OneRound
from experiments.inspection.states import Replay
from tests import tiny
from tests.experiments import fake_sweeps
from zo_fl import api as train
from zo_fl import config as configs
from zo_fl.engine.fields import ConfigError
from zo_fl.host import devices

CHANGES = dict(warmup__num_rounds=3, warmup__lr=1e-2, zo__num_rounds=4, zo__lr=1e-4)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    train.run(tiny.config("zowarmup", **CHANGES), path, quiet=True)
    return path


@pytest.fixture(scope="module")
def diagnosed(path):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        return diagnosis.of(Replay(path)), said


@pytest.fixture(scope="module")
def found(diagnosed):
    return diagnosed[0]


@pytest.mark.slow
def test_every_step_is_a_line(diagnosed):
    found, said = diagnosed
    tried = [f"trying {one.name} ..." for one in found.bought[1:]]
    steps = [line for line in said.getvalue().splitlines() if line.endswith(" ...")]
    assert steps[-len(tried) :] == tried
    assert [line.split()[0] for line in steps[: -len(tried)]] == [
        "rebuilding",
        "counting",
        "comparing",
    ]


def test_scalars_are_as_many_derivatives_as_their_estimator_says():
    steps = {"two_point": 0.02, "forward": 0.01, "jvp": 1.0}
    found = {name: diagnosis.scalar_of_slope_one(name, 0.01) for name in steps}
    assert found == pytest.approx(steps)


@pytest.mark.slow
def test_cosines_are_those_of_the_steps_with_the_gradient_of_all_examples(path, found):
    replay = Replay(path)
    assert [one.round for one in found.rounds] == [4, 5, 7]
    states = dict(replay.states([3, 4]))
    clients, task = replay.built.federation.clients, replay.built.task
    # Every client has all its examples in the phase: the mean loss over the union of them.
    each = zip(clients.client_indices, clients.client_sizes, strict=True)
    rows = np.concatenate([np.asarray(indices)[: int(size)] for indices, size in each])
    examples = jax.tree.map(lambda leaf: np.asarray(leaf)[rows], clients.examples)

    def loss(params):
        return jnp.mean(task.losses(params, {}, examples, np.ones(len(rows), bool), False)[0])

    gradient = jax.tree.leaves(jax.grad(loss)(states[3].params))
    step = jax.tree.leaves(jax.tree.map(jnp.subtract, states[4].params, states[3].params))
    flat = [np.concatenate([np.ravel(a) for a in one]).astype(float) for one in (gradient, step)]
    cosine = -flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    first = found.rounds[0]
    assert first.cosine == pytest.approx(cosine, rel=1e-3)
    assert first.directions == 8 * 3 and first.coordinates == np.count_nonzero(flat[1])
    assert first.expected == pytest.approx(math.sqrt(24 / (24 + first.coordinates - 1)))
    assert first.update_norm == pytest.approx(np.linalg.norm(flat[1]), rel=1e-4)
    assert all(one.signal > 10 * one.noise for one in found.rounds)  # at a good distance


@pytest.mark.slow
def test_what_else_the_passes_would_have_bought_is_what_runs_arrive_at(path, found, tmp_path):
    own, head, first_order = found.bought
    summary = json.loads((path / "summary.json").read_text())
    assert own.accuracy == pytest.approx(summary["final_accuracy"], abs=1e-6)
    assert own.accuracy == pytest.approx(found.after.mean(), abs=1e-6)  # as many of each class
    assert found.start == pytest.approx(summary["pivot_accuracy"], abs=1e-6)
    assert found.before.mean() == pytest.approx(found.start, abs=1e-6)
    ridge = train.run(tiny.config("fedavg+ridge", **CHANGES), tmp_path, quiet=True)
    assert head.accuracy == pytest.approx(ridge["final_accuracy"], abs=0.011)
    assert first_order.passes <= own.passes and first_order.accuracy > 0.1
    assert first_order.name.startswith("8 first-order")  # 3 passes against 2 S = 6


@pytest.mark.slow
def test_scalars_below_the_precision_of_losses_are_found_out(path, tmp_path):
    replay = changed(path, tmp_path / "run", {"zo.eps": 1e-10})
    phase = diagnosis.scalar_phase(replay)
    (one,) = diagnosis.compare(replay, phase, [replay.first(phase)])
    assert one.noise > one.signal
    assert any("more noise than signal" in text for text in page.warnings(example(rounds=[one])))


@pytest.mark.slow
def test_rounds_that_there_are_not_and_runs_without_scalars_are_one_line(path, tmp_path):
    with pytest.raises(ConfigError, match="--rounds=3 is not allowed; allowed: 4 to 7"):
        diagnosis.of(Replay(path), ["3"])
    with pytest.raises(ConfigError, match="no phase in which clients send scalars"):
        diagnosis.of(changed(path, tmp_path / "run", {"algorithm": "fedavg"}))


def changed(path, folder, changes):
    """Returns the states of a copy of a run, by a changed config."""
    shutil.copytree(path, folder)
    content = json.loads((path / "config.json").read_text())
    content["config"] = configs.changed(content["config"], changes)
    (folder / "config.json").write_text(json.dumps(content))
    return Replay(folder)


def example(**changes):
    base = Diagnosis(
        "a run",
        "zo",
        [OneRound(5, 0.09, 0.1, 24, 2000, 0.1, 1.0, 0.01)],
        0.4,
        np.array([0.5, 0.3]),
        np.array([0.5, 0.4]),
        [Bought("this phase: zo", 0.45, 100.0), Bought("zero rate: statistics alone", 0.41, 100.0)],
    )
    return base._replace(**changes)


def test_warnings_are_about_what_stands_out_and_nothing_else():
    assert page.warnings(example()) == []
    drop = page.warnings(example(after=np.array([0.3, 0.6])))
    assert drop == ["Class 0 lost more than 10 points."]
    rounds = [example().rounds[0]._replace(round=i, cosine=i / 1000) for i in (8, 9)]
    (both,) = page.warnings(example(rounds=rounds))
    assert both.startswith("Rounds 8, 9: ") and "is 0.0080, 0.0090; " in both
    bought = [example().bought[0], Bought("zero rate: statistics alone", 0.44, 100.0)]
    assert "explain 80 %" in page.warnings(example(bought=bought))[0]
    bought = [example().bought[0], Bought("a closed-form head of everyone", 0.6, 5.0)]
    (better,) = page.warnings(example(bought=bought))
    assert better.startswith(
        "A closed-form head of everyone would have given 60.0 % for 0.05 times"
    )


def test_the_command_writes_a_page_that_needs_nothing_else(tmp_path, monkeypatch, capsys):
    fake_sweeps.finish(tmp_path, 0.5, {})
    given = SimpleNamespace(workdir=str(tmp_path), rounds=["5"])
    monkeypatch.setattr(diagnose.flags, "FLAGS", given)
    monkeypatch.setattr(diagnosis, "of", lambda replay, rounds: example())
    monkeypatch.setattr(states, "Replay", lambda path: None)
    monkeypatch.setattr(devices, "keep_programs", lambda: None)
    assert diagnose.main([]) == 0
    said = capsys.readouterr().out
    assert "Rounds against the exact gradient" in said and "written to" in said
    html = (tmp_path / "diagnosis.html").read_text()
    assert html.count("<img") == 3 and "http" not in html.replace("http://www.w3.org", "")
    assert json.loads((tmp_path / "diagnosis.json").read_text())["rounds"][0]["round"] == 5
