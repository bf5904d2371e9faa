from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from zo_fl.data import federated
from zo_fl.engine import cohorts
from zo_fl.engine.errors import ConfigError
from zo_fl.engine.types import HIGH

BLOCK: dict[str, Any] = dict(
    name="synthetic", data_dir="", num_examples=0, num_clients=8, partition="dirichlet", alpha=0.1,
    shards_per_client=2, high_fraction=0.25, val_fraction=0.1, partition_seed=0,
)  # fmt: skip


def _load(**changes):
    return federated.load(**BLOCK | changes)


def test_the_config_block_is_the_keyword_arguments():
    assert set(base.get_config().to_dict()["data"]) == set(BLOCK)


@pytest.mark.parametrize("kind", federated.PARTITIONS)
def test_training_and_validation_rows_are_disjoint_and_nine_to_one(kind):
    found = _load(partition=kind)
    assert found.clients.client_indices.shape == (8, 90) and found.val_indices.shape == (80,)
    both = np.concatenate([found.clients.client_indices.ravel(), found.val_indices])
    assert len(np.unique(both)) == 800
    assert (found.clients.client_sizes == 90).all()
    assert (found.clients.client_tiers == HIGH).sum() == 2
    assert found.summary["all"]["examples"] == 720


def test_arrays_have_the_declared_types():
    clients = _load().clients
    assert clients.examples["image"].dtype == np.uint8
    assert {array.dtype for array in clients[1:]} == {np.dtype(np.int32)}
    assert all(isinstance(array, np.ndarray) for array in jax.tree.leaves(clients))


def test_a_federation_is_a_function_of_its_seed():
    first, again, other = _load(), _load(), _load(partition_seed=1)
    np.testing.assert_array_equal(first.clients.client_indices, again.clients.client_indices)
    np.testing.assert_array_equal(first.val_indices, again.val_indices)
    np.testing.assert_array_equal(first.clients.client_tiers, again.clients.client_tiers)
    assert not np.array_equal(first.clients.client_indices, other.clients.client_indices)


def test_another_high_fraction_moves_no_example_and_keeps_the_high_clients():
    few, many = _load(high_fraction=0.25), _load(high_fraction=0.75)
    np.testing.assert_array_equal(few.clients.client_indices, many.clients.client_indices)
    np.testing.assert_array_equal(few.val_indices, many.val_indices)
    assert (few.clients.client_tiers <= many.clients.client_tiers).all()


@pytest.mark.parametrize("kind", federated.PARTITIONS)
def test_some_examples_are_drawn_by_the_partition_seed_and_dealt_out(kind):
    few, others = (_load(partition=kind, num_examples=400, partition_seed=s) for s in (0, 1))
    held = [
        np.concatenate([f.clients.client_indices.ravel(), f.val_indices]) for f in (few, others)
    ]
    assert all(len(np.unique(rows)) == len(rows) == 400 for rows in held)
    assert held[0].max() >= 400 and set(held[0]) != set(held[1])
    whole = _load(partition=kind, num_examples=800)
    np.testing.assert_array_equal(
        whole.clients.client_indices, _load(partition=kind).clients.client_indices
    )


def test_no_validation_is_allowed():
    assert _load(val_fraction=0).val_indices.shape == (0,)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_clients": 801},
        {"num_examples": 801},
        {"high_fraction": 0.01},
        {"val_fraction": 1.0},
        {"name": "nothing"},
    ],
    ids=str,
)
def test_a_field_that_does_not_go_with_the_data_is_one_line_that_names_it(changes):
    with pytest.raises(ConfigError, match=rf"config\.data\.{next(iter(changes))}") as caught:
        _load(**changes)
    assert "\n" not in str(caught.value)


def test_too_many_shards_name_both_fields():
    with pytest.raises(ConfigError, match=r"num_clients=100 .*shards_per_client=30"):
        _load(num_clients=100, partition="shards", shards_per_client=30, val_fraction=0)


def test_gather_inside_jit_returns_each_clients_examples():
    found = _load()
    ids = jnp.array([5, 2, 2], jnp.int32)
    batch = jax.jit(cohorts.gather)(found.clients, ids)
    rows = found.clients.client_indices[np.array(ids)]
    np.testing.assert_array_equal(batch.examples["image"], found.dataset.train["image"][rows])
    np.testing.assert_array_equal(batch.examples["label"], found.dataset.train["label"][rows])
    np.testing.assert_array_equal(batch.tier, found.clients.client_tiers[np.array(ids)])
    np.testing.assert_array_equal(batch.client_id, ids)
    assert batch.mask.shape == (3, 90) and batch.mask.all()


@pytest.mark.slow
def test_gather_masks_what_lies_beyond_a_clients_size():
    clients = _load().clients._replace(client_sizes=np.arange(8, dtype=np.int32))
    batch = cohorts.gather(jax.tree.map(jnp.asarray, clients), jnp.array([0, 3], jnp.int32))
    np.testing.assert_array_equal(batch.mask.sum(axis=1), [0, 3])
    assert batch.mask[1, :3].all()
