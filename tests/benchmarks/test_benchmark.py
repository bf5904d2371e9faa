"""Each benchmark runs at a tiny size, and its figures are what they are called."""

import functools
import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import contest, conv, conv_forms, growth, measure, workloads
from tests import commands
from zo_fl.engine.algorithm import start
from zo_fl.engine.fields import ConfigError
from zo_fl.engine.round import make_algorithm

KEYS = {"seconds", "images", "flops", "forward_seconds", "peak_rss_bytes", "temporary_bytes"}


@pytest.mark.slow
def test_a_workload_runs_and_says_what_it_took():
    work = workloads.tiny(workloads.WORKLOADS["W6-zo"])._replace(images=2, rounds=2, width=1 / 16)
    figures = measure.measure(work, 1, {"run.data": "stream"})
    assert figures.keys() >= KEYS
    assert 0 < figures["host_seconds"][0] < figures["seconds"][0]
    assert len(figures["forward_seconds"]) == 1
    assert figures["images"] == 6 * work.clients * work.images
    json.dumps(figures)


@pytest.mark.nightly
@pytest.mark.slow
def test_workloads_of_large_models_are_rounds_that_can_be_traced():
    for name, passes in (("W4", 7), ("W5", 3)):
        work = workloads.tiny(workloads.WORKLOADS[name])
        built, _ = workloads.set_up(work, {})
        (phase,) = built.phases
        state = jax.eval_shape(lambda key: start(phase, *built.task.init(key)), built.run_key)  # noqa: B023
        algorithm = make_algorithm(phase, built.engine)
        after, *_ = jax.eval_shape(algorithm.round, state, built.data, built.run_key)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        (group,) = phase.groups
        assert group.forward_passes == passes * work.clients * work.images


def test_flops_are_those_of_the_convolutions_and_products():
    expected = {"W1": 33_670_400, "W3": 2 * 555_422_720, "W6-zo": 2 * (3072 * 64 + 64 * 10)}
    for name, flops in expected.items():
        assert workloads.forward_flops(workloads.WORKLOADS[name].model) == flops


def test_the_layers_are_those_of_the_benchmark_cnn():
    per_image = []
    for layer in conv.LAYERS.values():
        arrays = (jax.ShapeDtypeStruct(shape, "f4") for shape in ((1, *layer.x), layer.kernel))
        out = jax.eval_shape(functools.partial(layer.apply, implementation="xla"), *arrays)
        per_image.append(2 * math.prod(out.shape) * math.prod(layer.kernel[:-1]))
    assert sum(per_image) + 2 * 128 * 10 == workloads.forward_flops(workloads.WORKLOADS["W1"].model)


@pytest.mark.slow
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


def test_contestants_take_turns_in_processes_of_their_own():
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "flag", "expected"),
    [
        ("benchmark", "--only=W99", "unknown workload 'W99'"),
        ("measure", "--set=zo.epz=1", "did you mean config.zo.eps"),
        ("conv", "--cases=cnx", "allowed: cnn_large, cnn, resnet18, layers, weights"),
        ("precision", "--eps=1e-4,-1", "numbers above 0"),
        ("pack_data", "--join=P", "no --data_dir given"),
    ],
)
def test_a_bad_flag_is_one_line_and_status_2(script, flag, expected):
    command = ["-m", f"benchmarks.{script}", flag]
    done = commands.run(*command, *(["--workload=W1"] if script == "measure" else []))
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert expected in line


@pytest.mark.slow
def test_growth_covers_every_axis_and_fits_the_exponents_of_its_lines():
    assert {axis for axis, *_ in growth.cases(10)} == growth.AXES.keys()
    sizes = (1, 10, 100, 1000)
    points = [growth.Point("S", "a", n, max(5.0, 0.1 * n**1.5), 7, 3 * n) for n in sizes]
    slopes = [growth.exponent(points, field) for field in growth.FIELDS]
    assert slopes == pytest.approx([1.5, 0, 1], abs=1e-3)
    assert len(growth.draw(points).axes) == len(growth.FIELDS)


def test_commands_need_no_benchmark():
    for path in (commands.ROOT / "experiments").rglob("*.py"):
        text = path.read_text()
        assert "import benchmarks" not in text and "from benchmarks" not in text, path
