"""What crosses between devices in a round, read off the compiled program."""

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
    """Returns the numbers that each kind of collective of a round results in, and the phase."""
    built = tiny.build(algorithm, run__num_devices=DEVICES, **overrides)
    (phase,) = built.phases
    state = tiny.start(built, phase)
    text = (
        jax.jit(tiny.algorithm(built, phase).round)
        .lower(state, built.data, built.run_key)
        .compile()
        .as_text()
    )
    numbers = {}
    for found in COLLECTIVE.finditer(text):
        for shape in SHAPE.findall(found["shapes"]):
            count = 1
            for size in filter(None, shape.split(",")):
                count *= int(size)
            numbers.setdefault(found["kind"], []).append(count)
    model = sorted(leaf.size for leaf in jax.tree.leaves((state.params, state.model_state)))
    return numbers, model


@pytest.mark.parametrize(
    "model", [{"name": "mlp", "norm": "none"}, {"name": "cnn", "norm": "batch"}]
)
def test_a_round_of_fedavg_sums_one_model_and_a_few_numbers(model):
    numbers, leaves = crossing(
        "fedavg", **{f"model__{name}": value for name, value in model.items()}
    )
    assert numbers.keys() == {"all-reduce", "all-gather"}
    assert numbers["all-gather"] == [4]  # whether each client's numbers are finite
    scalars = [count for count in numbers["all-reduce"] if count == 1]
    assert sorted(count for count in numbers["all-reduce"] if count > 1) == leaves
    assert len(scalars) == 3  # the loss, the weight, the first of whose numbers are not finite


@pytest.mark.parametrize("seed_policy", ["per_client", "shared"])
@pytest.mark.parametrize("num_directions", [3, 5])
def test_a_zeroth_order_round_gathers_its_scalars_and_no_model(seed_policy, num_directions):
    numbers, leaves = crossing("zo", zo__seed_policy=seed_policy, zo__num_directions=num_directions)
    assert numbers.keys() == {"all-reduce", "all-gather"}
    # The loss, the weight, the first of the clients whose numbers are not finite.
    assert numbers["all-reduce"] == [1, 1, 1]
    clients = 8
    # Every client's weight, whether its numbers are finite, and scalars; and, to choose its own
    # directions by, its id.
    ids = [clients] if seed_policy == "per_client" else []
    assert sorted(numbers["all-gather"]) == [*ids, clients, clients, clients * num_directions]
    assert max(leaves) > 100 * clients * num_directions


def test_synced_statistics_cross_beside_the_scalars_and_nothing_else_does():
    numbers, _ = crossing("zo", model__name="cnn", model__norm="batch", zo__bn_policy="batch_sync")
    channels = [16, 16, 32, 32, 64, 64]  # mean and variance of three norms
    assert sorted(numbers["all-reduce"]) == [1, 1, 1, *channels]
    assert sorted(numbers["all-gather"]) == [8, 8, 8, 24]
