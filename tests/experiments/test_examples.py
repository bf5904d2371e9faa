"""The files that users copy run, and are as short as is said of them."""

from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from experiments.examples import own_algorithm, own_estimator, own_model_and_data, read_run
from tests import tiny
from zo_fl import api as train
from zo_fl import config as configs
from zo_fl import experiment
from zo_fl.engine import server_optimizers

pytestmark = pytest.mark.slow

FAST = {"run.num_devices": 1, "data.name": "synthetic", "model.name": "mlp", "model.norm": "none"}


def test_own_model_and_data(tmp_path):
    assert own_model_and_data.main(str(tmp_path / "run"), rounds=10) > 0.4, "chance is 1/7"


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


def test_a_new_server_optimizer_is_a_function_and_a_line(monkeypatch):
    lion = lambda options: optax.scale_by_lion(options.b1, options.b2)  # noqa: E731
    monkeypatch.setitem(server_optimizers.OPTIMIZERS, "lion", lion)
    made = server_optimizers.create(
        name="lion",
        lr=0.1,
        b1=0.9,
        b2=0.99,
        eps=0.0,
        initial_accumulator=0.0,
        bias_correction=False,
    )
    updates, _ = made.update(jax.numpy.array([3.0, -2.0]), made.init(jax.numpy.zeros(2)))
    np.testing.assert_allclose(updates, [-0.1, 0.1])


@pytest.mark.parametrize(
    ("module", "most"), ((own_estimator, 50), (own_algorithm, 70), (own_model_and_data, 60))
)
def test_they_are_short(module, most):
    assert len(Path(module.__file__).read_text().splitlines()) <= most
