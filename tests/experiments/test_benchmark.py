"""The benchmark's workloads, those for a GPU too, run as they are at a tiny size."""

import functools
import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarking import contest, conv, conv_forms, growth, measure, workloads
from tests import commands
from zo_fl.engine.errors import ConfigError
from zo_fl.engine.round import make_algorithm

KEYS = {"seconds", "images", "flops", "forward_seconds", "peak_rss_bytes", "temporary_bytes"}


def shrunk(work):
    """Returns less of a workload: programs that are hardly optimized take seconds to run."""
    changes = {name: 2 if name == "batch_size" else value for name, value in work.changes.items()}
    work = work._replace(images=2, rounds=min(work.rounds, 2), changes=changes)
    return work._replace(width=1 / 16) if work.model["name"] == "mlp" else work


@pytest.mark.slow
@pytest.mark.parametrize("name", ["W1", "W6-zo"])
def test_a_workload_runs_and_says_what_it_took(name):
    work = shrunk(workloads.tiny(workloads.WORKLOADS[name]))
    figures = measure.measure(work, 1, {})
    assert figures.keys() >= KEYS
    assert len(figures["seconds"]) == len(figures["host_seconds"]) == 1
    assert 0 < figures["host_seconds"][0] < figures["seconds"][0]
    assert (figures["forward_seconds"] is None) == (work.algorithm == "fedavg")
    passes = {"W1": 1, "W6-zo": 6}[name]
    assert figures["images"] == passes * work.clients * work.images
    json.dumps(figures)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "passes"), [("W3", 6), ("W4", 7), ("W5", 3)])
def test_a_workload_of_a_large_model_is_a_round_that_can_be_traced(name, passes):
    work = workloads.tiny(workloads.WORKLOADS[name])
    built, _ = workloads.set_up(work, {})
    (phase,) = built.phases
    state = jax.eval_shape(lambda key: phase.init(*built.task.init(key)), built.run_key)
    algorithm = make_algorithm(phase, built.engine)
    after, *_ = jax.eval_shape(algorithm.round, state, built.data, built.run_key)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert phase.forward_passes == passes * work.clients * work.images


@pytest.mark.parametrize(
    ("name", "flops"),
    [("W1", 33_670_400), ("W3", 2 * 555_422_720), ("W6-zo", 2 * (3072 * 64 + 64 * 10))],
)
def test_flops_are_those_of_the_convolutions_and_products(name, flops):
    assert workloads.forward_flops(workloads.WORKLOADS[name].model) == flops


def test_the_layers_are_those_of_the_benchmark_cnn():
    per_image = []
    for layer in conv.LAYERS.values():
        arrays = (jax.ShapeDtypeStruct(shape, "f4") for shape in ((1, *layer.x), layer.kernel))
        out = jax.eval_shape(functools.partial(layer.apply, implementation="xla"), *arrays)
        per_image.append(2 * math.prod(out.shape) * math.prod(layer.kernel[:-1]))
    assert sum(per_image) + 2 * 128 * 10 == workloads.forward_flops(workloads.WORKLOADS["W1"].model)


@pytest.mark.slow
def test_each_product_of_a_layer_is_taken_as_often_as_said(monkeypatch):
    monkeypatch.setattr(conv, "LAYERS_BATCH", 2)
    layer = conv.Product((5, 5, 3), (3, 3, 3, 4))
    one = {}
    for steps in (1, 3):
        monkeypatch.setattr(conv, "LAYERS_STEPS", steps)
        programs, flops = conv._layer_programs(layer, "xla")
        assert flops == 2 * (2 * 3 * 3 * 4) * 27
        for name, program in programs.items():
            one.setdefault(name, program())
            np.testing.assert_allclose(program(), steps * one[name], rtol=1e-4, atol=1e-4)
    assert [value.shape for value in one.values()] == [(2, 3, 3, 4), (2, 5, 5, 3), (3, 3, 3, 4)]


def test_other_forms_of_a_convolution_are_that_convolution():
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], (2, 6, 6, 32)), jax.random.normal(keys[1], (3, 3, 32, 4))
    expected = conv_forms.conv2d(x, kernel)
    for form in conv_forms.FORMS.values():
        np.testing.assert_allclose(form(x, kernel), expected, rtol=1e-4, atol=1e-4)
    first = conv_forms.channels_first(jnp.moveaxis(x, -1, 1), kernel)
    np.testing.assert_allclose(jnp.moveaxis(first, 1, -1), expected, rtol=1e-4, atol=1e-4)
    kernels = jax.random.normal(keys[2], (3, 3, 3, 3, 4))
    expected = conv_forms.one_by_one(x[..., :3], kernels)
    for form in (conv_forms.one_wide, conv_forms.same_patches):
        np.testing.assert_allclose(form(x[..., :3], kernels), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_change_of_the_config_reaches_the_round():
    work = shrunk(workloads.tiny(workloads.WORKLOADS["W6-zo"]))
    built, config = workloads.set_up(work, {"zo.num_directions": 5, "run.data": "stream"})
    assert config["zo"]["num_directions"] == 5 and built.engine.streamed
    assert measure.measure(work, 1, {"run.data": "stream"})["images"] == 2 * 2 * 6


def test_contestants_take_turns_in_processes_of_their_own(tmp_path):
    script = "import json; print('hello'); print(json.dumps({'seconds': [1, 2]}))"
    one = contest.run([sys.executable, "-c", script], 2)
    both = contest.merge([one | {"peak_rss_bytes": 5}, {"seconds": [3], "peak_rss_bytes": 9}])
    assert both == {"seconds": [1, 2, 3], "peak_rss_bytes": 9}
    with pytest.raises(ConfigError, match="failed: ValueError: no"):
        contest.run([sys.executable, "-c", "raise ValueError('no')"], 1)


def test_peers_without_an_environment_are_left_out(tmp_path):
    assert list(contest.contestants("W2", None, [])) == ["zo_fl"]
    with pytest.raises(ConfigError, match="leave out --peers"):
        contest.contestants("W2", tmp_path, [])
    (tmp_path / "jax" / "bin").mkdir(parents=True)
    (tmp_path / "jax" / "bin" / "python").touch()
    assert list(contest.contestants("W2", tmp_path, [])) == ["zo_fl", "plain JAX"]


def test_peers_run_from_the_repository_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="--peers needs the repository"):
        contest.contestants("W2", tmp_path, [])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "flag", "expected"),
    [
        ("measure", "--set=zo.epz=1", "did you mean config.zo.eps"),
        ("conv", "--cases=cnx", "allowed: cnn_large, cnn, resnet18, layers, weights"),
        ("memory", "--batches=0,1", "allowed: 1 to 900"),
        ("precision", "--model=cnx", "resnet18"),
        ("precision", "--eps=1e-4,-1", "numbers above 0"),
    ],
)
def test_a_script_s_bad_flag_is_one_line_and_status_2(script, flag, expected):
    command = ["-m", f"experiments.benchmarking.{script}", flag]
    done = commands.run(*command, *(["--workload=W1"] if script == "measure" else []))
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert expected in line


def test_exponents_are_those_of_the_upper_half_of_a_line():
    sizes = (1, 10, 100, 1000)
    points = [growth.Point("S", "a", n, max(5.0, 0.1 * n**1.5), 7, 3 * n) for n in sizes]
    slopes = [growth.exponent(points, field) for field in growth.FIELDS]
    assert slopes == pytest.approx([1.5, 0, 1], abs=1e-3)


def test_growth_is_drawn_with_a_panel_a_quantity():
    points = [
        growth.Point(axis, line, n, n / 100, 1000, 50 * n)
        for axis in growth.AXES
        for line in ("FedAvg", "Zeroth order")
        for n in (1, 10, 100)
    ]
    figure = growth.draw(points)
    assert len(figure.axes) == len(growth.AXES) * len(growth.FIELDS)
    assert [text.get_text() for text in figure.axes[0].texts] == ["1.00", "1.00"]
    assert [text.get_text() for text in figure.axes[1].texts] == ["0.00", "0.00"]


@pytest.mark.slow
def test_growth_covers_every_axis_with_work_that_runs():
    cases = list(growth.cases(10))
    assert {axis for axis, *_ in cases} == growth.AXES.keys()
    smallest = {(axis, line): rest for axis, line, *rest in reversed(cases)}
    size, work, changes = smallest["clients", "Ten of all, streamed"]
    assert size == 10 and measure.measure(shrunk(work), 1, changes)["seconds"][0] > 0
