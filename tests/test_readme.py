"""The code that the README shows does what it says."""

import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zo_fl
from experiments.examples import own_model_and_data as own
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


@pytest.mark.slow
def test_own_model_and_data_train_and_predict(tmp_path, monkeypatch):
    run, few = zo_fl.run, {"warmup.num_rounds": 1, "zo.num_rounds": 1, "run.num_devices": 1}

    def shortly(*given, changes, **options):
        return run(*given, changes=changes | few, quiet=True, **options)

    monkeypatch.setattr(zo_fl, "run", shortly)
    monkeypatch.chdir(tmp_path)
    (x_train, y_train), (x_test, y_test) = own.make_data(), own.make_data(70, seed=1)
    names = dict(x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    exec(shown("zo_fl.dataset"), names | {"MyModule": own.MyModule} | (found := {}), found)
    assert found["summary"]["rounds"] == 2 and found["labels"].shape == (70,)
