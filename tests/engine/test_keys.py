"""The seed protocol: which keys differ, and what a leaf's key depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zo_fl.engine import keys

RUN = keys.run_key(0)
ONE, TWO = "plumless", "buckeroo"  # two words of the same CRC-32


def data(key):
    return jax.random.key_data(key).tolist()


def test_rounds_clients_and_streams_have_keys_of_their_own():
    rounds = [keys.of_round(RUN, index) for index in range(4)]
    clients = [of_round.of(client) for of_round in rounds for client in range(4)]
    found = [of_round.round for of_round in rounds] + [own.client for own in clients]
    found += [keys.stream(own.client, name) for own in clients for name in ("batches", "augment")]
    assert len({tuple(data(key)) for key in found}) == len(found)


def test_a_client_s_keys_are_those_of_its_id_in_the_round():
    own = keys.of_round(RUN, jnp.int32(3)).of(jnp.int32(5))
    assert data(own.client) == data(keys.client_key(keys.round_key(RUN, 3), 5))
    assert data(own.run) == data(RUN) and own.client_id == 5


def test_a_leaf_s_key_depends_on_its_path_alone():
    leaf = np.zeros(3, np.float32)
    whole = {"a": {"b": leaf, "c": leaf}, "d": leaf}
    found = dict(zip(("a/b", "a/c", "d"), data(keys.leaf_keys(RUN, whole)), strict=True))
    assert len({tuple(key) for key in found.values()}) == 3
    part = {"z": np.zeros((2, 2), np.float32), "a": {"c": leaf}}
    assert data(keys.leaf_keys(RUN, part))[0] == found["a/c"]


def test_two_paths_of_the_same_hash_are_refused():
    tree = {ONE: np.zeros(2), TWO: np.zeros(2)}
    with pytest.raises(ValueError, match=f"share a CRC-32, rename one: .*{TWO}.*{ONE}"):
        keys.leaf_keys(RUN, tree)
    # Below other modules their paths are others.
    keys.leaf_keys(RUN, {"x": {ONE: np.zeros(2)}, "y": {TWO: np.zeros(2)}})
