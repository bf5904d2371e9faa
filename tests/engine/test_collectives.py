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
    sizes, model = crossing("fedavg", model__name="cnn", model__norm="batch")
    # Beside the model the loss, the weight, the first client whose numbers are not finite; and who
    # of the four that is.
    assert {kind: sorted(each) for kind, each in sizes.items()} == {
        "all-reduce": [1, 1, 1, *model],
        "all-gather": [4],
    }


@pytest.mark.parametrize("seed_policy", ["per_client", "shared"])
def test_a_zeroth_order_round_gathers_its_scalars_and_no_model(seed_policy):
    sizes, model = crossing("zo", zo__seed_policy=seed_policy)
    # Every client's weight, whether its numbers are finite, its scalars; and, to choose its own
    # directions by, its id.
    ids = [8] if seed_policy == "per_client" else []
    assert sizes.keys() == {"all-reduce", "all-gather"} and max(model) > 1000
    assert sizes["all-reduce"] == [1, 1, 1]
    assert sorted(sizes["all-gather"]) == [*ids, 8, 8, 8 * 3]


def test_synced_statistics_cross_beside_the_scalars_and_nothing_else_does():
    sizes, _ = crossing("zo", model__name="cnn", model__norm="batch", zo__bn_policy="batch_sync")
    channels = [16, 16, 32, 32, 64, 64]  # mean and variance of three norms
    assert sorted(sizes["all-reduce"]) == [1, 1, 1, *channels]
    assert sorted(sizes["all-gather"]) == [8, 8, 8, 24]
