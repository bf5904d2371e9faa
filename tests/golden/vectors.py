"""The seed protocol in numbers: what keys stand for, and what one old ledger rebuilds.

A ledger promises that keys and a few scalars rebuild a model *later*. Every other test reads keys
through the project's own functions, so a renamed stream or another order of folds would pass them
all and void every ledger that exists. ``vectors.json`` and ``ledger.msgpack`` are what version
0.2.0 computed; they are never made anew.

    python -m tests.golden.vectors      prints what is computed now
"""

import functools
import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from zo_fl.engine import cohorts, image_task, keys
from zo_fl.zo import directions, fedkseed, subspace

FOLDER = Path(__file__).parent
ROUND, CLIENT, DIRECTION = 3, 5, 2
TREE = {"a": jnp.zeros((3, 5)), "b": {"c": jnp.zeros(40)}}
TIERS = np.array([0, 1, 0, 0, 1, 0, 0, 0, 1, 0], np.int32)


@functools.cache
def computed() -> dict:
    """Returns the vectors, as JSON: integers exactly, floats to six digits."""
    return jax.tree.map(_plain, jax.jit(_computed)())


def _computed() -> dict:
    run = keys.run_key(0)
    of_round = keys.round_key(run, ROUND)
    client = keys.client_key(of_round, CLIENT)
    own, shared = (keys.stream(key, "directions") for key in (client, of_round))
    direction = jax.random.fold_in(own, DIRECTION)
    drawn = {name: directions.create(name, 0.75) for name in directions.DISTRIBUTIONS}
    batches, mask = keys.stream(client, "batches"), jnp.arange(12) < 11
    images = jnp.arange(2 * 6 * 6, dtype=jnp.uint8).reshape(2, 6, 6, 1)
    everyone = np.arange(10, dtype=np.int32)
    cohorts_ = {
        how: cohorts.make_sampler(everyone, 4, TIERS, how)(of_round).client_ids
        for how in ("uniform", "stratified")
    }
    # As the client of each method splits the same key: one an epoch.
    epochs = jax.random.split(batches, 2)
    one_chunk, _ = jax.vmap(cohorts.epoch_order, (0, None, None))(epochs, mask, 5)
    return {
        "keys": {
            "run": run,
            "round": of_round,
            "client": client,
            "directions": own,
            "shared directions": shared,
            "direction": direction,
            "leaves": keys.leaf_keys(direction, TREE),
            "streams": {
                name: keys.stream(client, name)
                for name in ("batches", "augment", "candidates", "faults", "attack", "late")
                + ("privacy", "patches")
            },
            "streams of the run": {
                name: keys.stream(run, name)
                for name in ("init", "byzantine", "candidate_seeds", "sketch")
            },
        },
        "directions": {name: add(TREE, direction, 1.0) for name, add in drawn.items()},
        "places": subspace._places("b/c", 40, 0.1),
        "candidates": fedkseed.pool_keys(run, jnp.arange(3)),
        "cohorts": cohorts_,
        "batches": one_chunk,
        "augmented": image_task.crop_and_flip(keys.stream(client, "augment"), images),
    }


def _plain(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    return np.round(array.astype(float), 6).tolist() if array.dtype.kind == "f" else array.tolist()


def stored() -> dict:
    """Returns the committed vectors."""
    return json.loads((FOLDER / "vectors.json").read_text())


def start(params):
    """Returns the parameters that the ledger begins with: the same bits on every machine."""
    return jax.tree.map(
        lambda leaf: (jnp.arange(leaf.size, dtype=jnp.float32) % 17 - 8).reshape(leaf.shape) / 64,
        params,
    )


def digest(params) -> str:
    """Returns the SHA-256 of all arrays of some parameters, in the order of their paths."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    print(json.dumps(computed()))
