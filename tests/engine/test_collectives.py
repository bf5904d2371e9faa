"""What crosses between devices in a round, read off the compiled program."""

import math
import re

import jax
import pytest

from tests import tiny

pytestmark = pytest.mark.slow

DEVICES = 4
COLLECTIVE = re.compile(
    r"= (?P<shapes>.*?) (?P<kind>all-reduce|all-gather|all-to-all|collective-permute|"
    r"reduce-scatter|collective-broadcast)(-start)?\("
)
SHAPE = re.compile(r"[a-z]+\d*\[([\d,]*)\]")


def crossing(algorithm, **overrides):
    """Returns the sizes of what each kind of collective of a round leaves, and of the model."""
    built = tiny.build(algorithm, run__num_devices=DEVICES, **overrides)
    (phase,) = built.phases
    state = tiny.start(built, phase)
    step = jax.jit(tiny.algorithm(built, phase).round)
    text = step.lower(state, built.data, built.run_key).compile().as_text()
    sizes = {}
    for found in COLLECTIVE.finditer(text):
        for shape in SHAPE.findall(found["shapes"]):
            size = math.prod(map(int, filter(None, shape.split(","))))
            sizes.setdefault(found["kind"], []).append(size)
    model = sorted(leaf.size for leaf in jax.tree.leaves((state.params, state.model_state)))
    return sizes, model


def test_a_round_of_fedavg_sums_one_model_and_a_few_numbers():
    sizes, model = crossing("fedavg")
    # Beside the model the loss, the weight, the first client whose numbers are not finite; and who
    # of the four that is.
    assert {kind: sorted(each) for kind, each in sizes.items()} == {
        "all-reduce": [1, 1, 1, *model],
        "all-gather": [4],
    }


def test_scalars_and_synced_statistics_of_a_zeroth_order_round_cross_and_no_model_does():
    sizes, _ = crossing("zo", model__name="cnn", model__norm="batch", zo__bn_policy="batch_sync")
    channels = [16, 16, 32, 32, 64, 64]  # mean and variance of three norms
    assert sizes.keys() == {"all-reduce", "all-gather"}
    assert sorted(sizes["all-reduce"]) == [1, 1, 1, *channels]
    # Every client's id, by which its directions are chosen, its weight, whether its numbers are
    # finite, and its three scalars.
    assert sorted(sizes["all-gather"]) == [8, 8, 8, 8 * 3]
