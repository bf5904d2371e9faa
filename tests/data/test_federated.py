"""A data set divided among clients: who holds what depends on the partition seed alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zo_fl.config.check import defaults
from zo_fl.data import federated
from zo_fl.engine import cohorts
from zo_fl.engine.fields import ConfigError
from zo_fl.engine.types import HIGH

BLOCK: dict[str, Any] = defaults(federated.BLOCK) | {
    "name": "synthetic",
    "num_clients": 8,
    "num_examples": 0,
    "high_fraction": 0.25,
}


def load(**changes):
    return federated.load(**BLOCK | changes)


def held(federation):
    return np.concatenate([federation.clients.client_indices.ravel(), federation.val_indices])


@pytest.mark.parametrize("kind", federated.PARTITIONS)
def test_training_and_validation_rows_are_disjoint_and_nine_to_one(kind):
    found = load(partition=kind)
    assert found.clients.client_indices.shape == (8, 90) and found.val_indices.shape == (80,)
    assert len(np.unique(held(found))) == 800
    assert (found.clients.client_sizes == 90).all()
    assert (found.clients.client_tiers == HIGH).sum() == 2
    assert found.summary["all"]["examples"] == 720
    assert {array.dtype for array in found.clients[1:]} == {np.dtype(np.int32)}
    assert all(isinstance(array, np.ndarray) for array in jax.tree.leaves(found.clients))


def test_a_federation_is_a_function_of_its_seed():
    first, again, other = load(), load(), load(partition_seed=1)
    jax.tree.map(np.testing.assert_array_equal, first[1:3], again[1:3])
    assert not np.array_equal(first.clients.client_indices, other.clients.client_indices)


def test_another_high_fraction_moves_no_example_and_keeps_the_high_clients():
    few, many = load(high_fraction=0.25), load(high_fraction=0.75)
    np.testing.assert_array_equal(held(few), held(many))
    assert (few.clients.client_tiers <= many.clients.client_tiers).all()


def test_some_examples_are_drawn_by_the_partition_seed_and_divided():
    few, others = (held(load(num_examples=400, partition_seed=seed)) for seed in (0, 1))
    assert all(len(np.unique(rows)) == len(rows) == 400 for rows in (few, others))
    assert few.max() >= 400 and set(few) != set(others)
    np.testing.assert_array_equal(held(load(num_examples=800)), held(load()))


def test_no_validation_is_allowed():
    assert load(val_fraction=0).val_indices.shape == (0,)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_clients": 801},
        {"num_clients": 401, "partition": "shards"},
        {"num_examples": 801},
        {"high_fraction": 0.01},
        {"val_fraction": 1.0},
        {"name": "nothing"},
    ],
    ids=str,
)
def test_a_field_that_does_not_fit_the_data_is_one_line_that_names_it(changes):
    with pytest.raises(ConfigError, match=rf"config\.data\.{next(iter(changes))}") as caught:
        load(**changes)
    assert "\n" not in str(caught.value)


def test_gather_inside_jit_returns_the_examples_of_each_client():
    found = load()
    clients = found.clients._replace(client_sizes=np.arange(8, dtype=np.int32))
    ids = np.array([5, 2, 2], np.int32)
    batch = jax.jit(cohorts.gather)(clients, jnp.asarray(ids))
    rows = clients.client_indices[ids]
    np.testing.assert_array_equal(batch.examples["image"], found.dataset.train["image"][rows])
    np.testing.assert_array_equal(batch.examples["label"], found.dataset.train["label"][rows])
    np.testing.assert_array_equal(batch.tier, clients.client_tiers[ids])
    np.testing.assert_array_equal(batch.client_id, ids)
    np.testing.assert_array_equal(batch.mask, np.arange(90) < ids[:, None])
