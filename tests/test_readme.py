"""The code that the README shows does what it says."""

import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np

from tests import tiny

README = (Path(__file__).parent.parent / "README.md").read_text()


def shown(word):
    """Returns the Python block of the README that holds a word."""
    (block,) = (one for one in re.findall(r"```python\n(.*?)```", README, re.S) if word in one)
    return block


def test_the_round_is_the_project_s_to_the_bit():
    names = {}
    exec(shown("def server"), names)
    numbers = dict(zo__num_directions=names["S"], zo__eps=names["EPS"], zo__lr=names["LR"])
    built = tiny.build("zo", seed=names["SEED"], **numbers)
    _, (before, after), _, ((record,),) = tiny.run(built)
    ids = np.asarray(record.cohort.client_ids)
    keys = jnp.stack([names["directions"](0, client) for client in ids])

    def losses(params, examples):
        mask = jnp.ones(len(examples["label"]), bool)
        return built.task.losses(params, {}, examples, mask, False)[0]

    client = jax.jit(lambda *given: names["client"](losses, *given))
    batches = [tiny.batch_of(built, int(i)) for i in ids]
    assert all(batch.mask.all() for batch in batches)
    sent = [client(before.params, batch.examples, key) for batch, key in zip(batches, keys)]  # noqa: B905
    np.testing.assert_array_equal(jnp.stack(sent), record.messages[:, 0])
    sizes = jnp.float32([len(batch.mask) for batch in batches])
    params = jax.jit(names["server"])(before.params, jnp.stack(sent), keys, sizes)
    chex.assert_trees_all_equal(params, after.params)
