"""Every config runs, on a small scale: a round or two a phase on synthetic data."""

import importlib
import math
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from experiments.sweeping import jobs
from tests import tiny
from zo_fl import api as train
from zo_fl import config as configs
from zo_fl import experiment
from zo_fl import methods as algorithms
from zo_fl.config import sweeps

NAMES = sorted(
    path.stem
    for path in (Path(__file__).parents[2] / "configs").glob("*.py")
    if path.stem not in ("__init__", "base")
)


def load(name):
    return importlib.import_module(f"configs.{name}")


def small(name):
    """Returns a config with little to compute, on synthetic data, of a round or two a phase."""
    config = load(name).get_config()
    config.data.name = "synthetic"
    if config.model.name == "patches":
        config.model.kernels = 4
    else:
        config.model.update(name="mlp", norm="none")
    rounds = 1 if len(algorithms.parts(config.algorithm)) > 1 else 2
    fields = dict(num_rounds=rounds, cohort_size=2, local_epochs=1, local_steps=2)
    fields |= dict(num_directions=2)
    for block in config.values():
        if isinstance(block, ConfigDict):
            block.update({field: fields[field] for field in fields if field in block})
    config.zo.microbatch = 7
    config.heterofl.cohort_size = 0  # of two, some of its levels would be without clients
    config.run.update(num_devices=1, rounds_per_jit=2, eval_every=10, checkpoint_every=10)
    return configs.resolve(config)


@pytest.mark.slow
def test_two_rounds_run_on_synthetic_data(tmp_path):
    summary = train.run(small("quickstart"), tmp_path, quiet=True)
    assert summary["rounds"] == 2 and summary["diverged_round"] is None
    assert summary["uplink_bytes"] > 0 and 0 <= summary["final_accuracy"] <= 1


@pytest.mark.parametrize("name", NAMES)
def test_every_config_is_allowed_and_makes_an_experiment_of_few_rounds(name):
    configs.resolve(load(name).get_config())
    rounds = [phase.num_rounds for phase in experiment.build(small(name)).phases]
    assert rounds == [2] or set(rounds) == {1}


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_gives_the_command_and_the_file_sets_known_fields_only(name):
    module = load(name)
    assert f"python -m experiments.main --config=configs/{name}.py" in module.__doc__
    assert configs.resolve(module.get_config()) == configs.resolve(configs.load(name))


@pytest.mark.parametrize("data", ("cifar10", "imagenet32"))
def test_the_five_splits_differ_in_nothing_but_the_share_of_high_resource_clients(data):
    shares, rest = [], []
    for split in ("10_90", "30_70", "50_50", "70_30", "90_10"):
        config = load(f"{data}_{split}").get_config()
        shares.append(config.data.high_fraction)
        config.data.high_fraction = 0.0
        rest.append(config.to_dict())
    assert shares == [0.1, 0.3, 0.5, 0.7, 0.9]
    assert all(one == rest[0] for one in rest)


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name.startswith("imagenet32") and "_200_" not in name]
)
def test_no_forward_pass_of_imagenet32_takes_all_images_of_a_client_at_once(name):
    config = configs.resolve(load(name).get_config())
    read = configs.blocks_read(algorithms.parts(config["algorithm"]))
    probing = [config[block] for block in read if "num_directions" in config[block]]
    assert probing or config["algorithm"] in ("fedavg", "heterofl")
    assert all(0 < block["microbatch"] < 2000 for block in probing)


def test_the_paper_s_setting_is_the_paper_s():
    config = load("cifar10_10_90").get_config()
    config.data.name = "synthetic"  # its clients are smaller; their number is what matters
    config.run.num_devices = 1
    built = experiment.build(configs.resolve(config))
    warmup, zo = built.phases
    assert (warmup.num_rounds, warmup.cohort_size) == (200, 5)
    assert (zo.num_rounds, zo.cohort_size) == (300, 50)
    assert (config.zo.eps, config.zo.tau) == (1e-4, 0.75)


def moved(block, config, overrides):
    """By base.py's rule, in units of what gradient, dimension, directions and cohort make."""
    fields = {**config[block].to_dict()} | {
        name.removeprefix(f"{block}."): value for name, value in overrides.items()
    }
    return fields["lr"] * fields["tau"] ** 2 * math.sqrt(fields["local_steps"])


@pytest.mark.parametrize(
    ("name", "block", "count"),
    (("local_steps", "zo", 3), ("direction", "zo", 8), ("local_steps_fedkseed", "fedkseed", 1)),
)
def test_sweeps_of_tau_and_steps_compare_at_an_equal_update_norm_too(name, block, count):
    config = configs.default()
    sweep = jobs.load_sweep(name, config)
    equal = [point for point in sweep.points if point.row.endswith(", equal norm")]
    assert len(equal) == count
    others = [point for point in sweep.points if point not in equal]
    # The rows at an equal rate differ in how far they move, those of equal norm do not.
    norms = {round(moved(block, config, point.overrides), 12) for point in equal}
    assert len(norms) == 1
    assert len({round(moved(block, config, point.overrides), 12) for point in others}) > 1
    assert norms <= {round(moved(block, config, point.overrides), 12) for point in others}


@pytest.mark.slow
def test_a_rate_of_equal_norm_moves_the_model_as_far():
    def norm(**changes):
        built = tiny.build("zo", **{f"zo__{name}": value for name, value in changes.items()})
        (phase,) = built.phases
        step = jax.jit(tiny.algorithm(built, phase).round)
        return float(step(tiny.start(built, phase), built.data, built.run_key)[1]["update_norm"])

    rate = sweeps.rate_of_equal_norm(1e-4, (0.75, 0.01), (1, 6))
    one, six = norm(lr=1e-4, tau=0.75), norm(lr=rate, tau=0.01, local_steps=6)
    assert six == pytest.approx(one, rel=0.5)  # of the 2,300 between them at an equal rate
