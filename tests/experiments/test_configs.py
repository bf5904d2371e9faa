"""Every config runs, on a small scale: a round or two a phase on synthetic data."""

import importlib
import math
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from experiments.jobs import plan
from zo_fl import config as configs
from zo_fl import experiment, methods

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
        config.model.update(kernels=4, network="none")
    else:
        config.model.update(name="mlp", norm="none")
    rounds = 1 if len(methods.parts(config.algorithm)) > 1 else 2
    fields = dict(num_rounds=rounds, cohort_size=2, local_epochs=1, local_steps=2)
    fields |= dict(num_directions=2)
    for block in config.values():
        if isinstance(block, ConfigDict):
            block.update({field: fields[field] for field in fields if field in block})
    config.zo.microbatch = 7
    config.heterofl.cohort_size = "all"  # of two, some of its levels would be without clients
    if "mixed_tiers" in config.algorithm:
        config.zo.cohort_size = "all"  # likewise its tiers
    config.run.update(num_devices=1, rounds_per_jit=2, eval_every=10, checkpoint_every=10)
    return configs.resolve(config)


def test_every_config_is_allowed_gives_its_command_and_makes_an_experiment():
    for name in NAMES:
        module = load(name)
        assert f"python -m experiments.main --config=configs/{name}.py" in module.__doc__, name
        resolved = configs.resolve(module.get_config())
        assert resolved == configs.resolve(configs.load(name)), name
        rounds = [phase.num_rounds for phase in experiment.build(small(name)).phases]
        assert rounds == [2] or set(rounds) == {1}, name


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


def test_no_forward_pass_of_imagenet32_takes_all_images_of_a_client_at_once():
    for name in NAMES:
        if not name.startswith("imagenet32") or "_200_" in name:
            continue
        config = configs.resolve(load(name).get_config())
        read = configs.blocks_read(methods.parts(config["algorithm"]))
        assert "zo" in read or config["algorithm"] in ("fedavg", "heterofl")
        assert 0 < config["zo"]["microbatch"] < 2000


def test_the_paper_s_setting_is_the_paper_s():
    config = load("cifar10_10_90").get_config()
    config.data.name = "synthetic"  # its clients are smaller; their number is what matters
    config.run.num_devices = 1
    built = experiment.build(configs.resolve(config))
    warmup, zo = built.phases
    assert (warmup.num_rounds, warmup.cohort_size) == (200, 5)
    assert (zo.num_rounds, zo.cohort_size) == (300, 50)
    assert (config.zo.eps, config.zo.tau) == (1e-4, 0.75)


@pytest.mark.parametrize(
    ("name", "block", "count"),
    (("local_steps", "zo", 3), ("direction", "zo", 8), ("local_steps_fedkseed", "fedkseed", 1)),
)
def test_sweeps_of_tau_and_steps_compare_at_an_equal_update_norm_too(name, block, count):
    config = configs.default()
    norms = {True: [], False: []}
    for point in plan.load_sweep(name, config).points:
        changed = configs.changed(config.to_dict(), point.overrides)[block]
        # By base.py's rule, in units of what gradient, dimension, directions and cohort make.
        norm = changed["lr"] * changed.get("tau", 1.0) ** 2 * math.sqrt(changed["local_steps"])
        norms[point.row.endswith(", equal norm")].append(round(norm, 12))
    # The rows at an equal rate differ in how far they move, those of equal norm do not.
    assert len(norms[True]) == count and len(set(norms[True])) == 1
    assert len(set(norms[False])) > 1 and set(norms[True]) <= set(norms[False])
