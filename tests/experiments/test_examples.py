"""The files that users copy run."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

import zo_fl
from experiments.examples import own_algorithm, own_estimator, own_model_and_data, read_run
from tests import tiny
from zo_fl import api as train
from zo_fl import config as configs
from zo_fl import experiment
from zo_fl.engine.fields import ConfigError
from zo_fl.methods import METHODS
from zo_fl.zo.estimators import ESTIMATORS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FAST = {"run.num_devices": 1, "data.name": "synthetic", "model.name": "mlp", "model.norm": "none"}


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(METHODS, "fedprox", own_algorithm.METHOD)
    monkeypatch.setitem(ESTIMATORS, "five_point", own_estimator.five_point)


def test_examples_readme_and_notebook_write_to_folders_of_their_own():
    """So that one may be tried after the other."""
    paths = [*(ROOT / "experiments" / "examples").glob("own_*.py"), ROOT / "README.md"]
    paths.append(ROOT / "experiments" / "colab.ipynb")
    folders = [set(re.findall(r'"(runs/\w+)\\?"', path.read_text())) for path in paths]
    assert all(folders) and len(set.union(*folders)) == sum(map(len, folders))


def test_own_model_and_data(tmp_path, monkeypatch):
    def on_one(*given, changes, run=zo_fl.run, **options):
        return run(*given, changes=changes | {"run.num_devices": 1}, **options)

    monkeypatch.setattr(zo_fl, "run", on_one)
    assert own_model_and_data.main(str(tmp_path / "run"), rounds=5) > 0.3, "chance is 1/7"


def test_the_new_estimator_agrees_with_the_limit_of_differences():
    def scalars(estimator):
        built = tiny.build("zo", zo__estimator=estimator, zo__eps=1e-4, zo__num_directions=2)
        (phase,) = built.phases
        state = tiny.start(built, phase)
        _, metrics, (record,) = jax.jit(tiny.algorithm(built, phase).round)(
            state, built.data, built.run_key
        )
        return np.asarray(record.messages)[:, 0], float(metrics["loss"])

    (exact, loss), (differences, other) = scalars("jvp"), scalars("five_point")
    # Not closer: a relu between the points is a kink.
    assert np.corrcoef(exact.ravel(), differences.ravel())[0, 1] > 0.995
    np.testing.assert_allclose(np.std(exact), np.std(differences / 2e-4), rtol=5e-2)
    assert abs(loss - other) < 1e-3


def test_fedprox_has_no_field_of_an_early_end_which_it_does_not_have():
    changes = {"algorithm": "fedprox", "fedprox.stop": "plateau"}
    with pytest.raises(ConfigError, match=r"unknown field config\.fedprox\.stop"):
        configs.changed(configs.resolve(tiny.config("fedprox")), changes)


def test_fedprox_without_pull_is_fedavg_and_with_it_moves_less():
    def after(name, block, fields):
        changes = {f"{block}.{field}": value for field, value in fields.items()}
        made = configs.changed(configs.resolve(tiny.config(name)), changes)
        built = experiment.build(configs.resolve(made))
        (phase,) = built.phases
        step = jax.jit(tiny.algorithm(built, phase).round)
        return step(tiny.start(built, phase), built.data, built.run_key)[:2]

    # Several steps a client: at the first one there is nothing to pull back.
    same = dict(local_epochs=1, batch_size=30, augment=False, num_rounds=2)
    reference, expected = after("fedavg", "warmup", same)
    still, metrics = after("fedprox", "fedprox", same | {"mu": 0.0})
    for one, other in zip(
        jax.tree.leaves(reference.params), jax.tree.leaves(still.params), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
    _, pulled = after("fedprox", "fedprox", same | {"mu": 5.0})
    assert pulled["update_norm"] < metrics["update_norm"]
    np.testing.assert_allclose(metrics["update_norm"], expected["update_norm"], rtol=1e-6)


def test_a_new_algorithm_warms_up_runs_and_is_a_warm_start(tmp_path):
    small = FAST | {"fedprox.num_rounds": 2, "zo.num_rounds": 1, "fedprox.augment": False}
    alone = small | {"algorithm": "fedprox"}
    train.run("quickstart", tmp_path / "warmup", changes=alone, quiet=True)
    both = small | {"algorithm": "fedprox+zo"}
    summary = train.run(
        "quickstart", tmp_path / "run", changes=both, warm_start=tmp_path / "warmup", quiet=True
    )
    assert summary["rounds"] == 3
    read_run.main([str(tmp_path / "run")], str(tmp_path / "curve.png"))
    assert (tmp_path / "curve.png").stat().st_size > 5000
