"""The seed protocol: a key stands in for a seed, by construction.

    run key -> fold_in(round) -> fold_in(client id) -> stream -> fold_in(direction) -> leaf path

Two parties that know the run's seed know every direction of every client of every round, so seeds
never travel. No key is stored in a state or a checkpoint. The PRNG is pinned to ``threefry2x32``:
with ``rbg``, ``vmap`` uses only the first key of a batch, and a replay would rebuild another
gradient without a word.
"""

import zlib
from typing import Any, NamedTuple

import jax
import numpy as np

from zo_fl.engine.types import Array, PyTree

IMPLEMENTATION = "threefry2x32"
# Raised where keys come to stand for other numbers: 2, coordinates of ``zo.density`` below 1.
PROTOCOL = 2


class Keys(NamedTuple):
    """The keys of a round, and of one client in it.

    Attributes:
      run: ``key[]``, the root of all randomness.
      round: ``key[]``.
      client: ``key[]``, the client's own in this round; None where the server computes.
      client_id: ``i32[]``; likewise.
    """

    run: Array
    round: Array
    client: Any = None
    client_id: Any = None

    def of(self, client_id: Array) -> "Keys":
        """Returns the keys of one client in the same round."""
        return self._replace(client=client_key(self.round, client_id), client_id=client_id)


def run_key(seed: int | Array) -> Array:
    """Returns the root key ``key[]`` of a run from its config's seed, an integer or ``u32[]``."""
    return jax.random.key(seed, impl=IMPLEMENTATION)


def of_round(key: Array, round_idx: int | Array) -> Keys:
    """Returns the keys of one round from the run's key."""
    return Keys(key, round_key(key, round_idx))


def round_key(key: Array, round_idx: int | Array) -> Array:
    """Returns the key ``key[]`` of one round from the run's key."""
    return jax.random.fold_in(key, round_idx)


def client_key(key: Array, client_id: int | Array) -> Array:
    """Returns the key ``key[]`` of one client in one round, from the round's key."""
    return jax.random.fold_in(key, client_id)


def stream(key: Array, name: str) -> Array:
    """Returns an independent key ``key[]`` for one purpose: ``"batches"``, ``"augment"``.

    CRC-32 of the name is the same in every process; Python's ``hash`` is not.
    """
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def leaf_keys(key: Array, tree: PyTree) -> Array:
    """Returns a key for each leaf, ``key[L]`` in the order of ``jax.tree.leaves``.

    It depends on the leaf's path alone: a sub-model, or a model with its modules in another order,
    sees the same directions.

    Raises:
      ValueError: two paths have the same CRC-32.
    """
    paths, _ = jax.tree.flatten_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    hashes = np.array([zlib.crc32(name.encode()) for name in names], np.uint32)
    if len(set(hashes.tolist())) != len(names):
        raise ValueError(f"two parameter paths share a CRC-32, rename one: {names}")
    # Mapped, not looped over: XLA would compile one copy of the generator a leaf.
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, hashes)
