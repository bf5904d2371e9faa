import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests import commands, tiny
from zo_fl.engine.errors import ConfigError
from zo_fl.engine.types import ServerState
from zo_fl.host.checkpoint import Checkpoints


def make_state(fill=1.0, optimizer=None, width=3, model_state=None):
    params = {"a": {"w": jnp.full((2, width), fill, jnp.float32), "b": jnp.linspace(0, 1e-30, 5)}}
    optimizer = optimizer or optax.chain(optax.clip(1.0), optax.adam(1e-3))
    return ServerState(params, model_state or {}, optimizer.init(params), (), jnp.int32(7))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


PROGRESS = {"seconds": 1.5, "pivot_accuracy": None, "nested": {"list": [1, 0.1]}}


@pytest.mark.parametrize("optimizer", [optax.sgd(1.0), optax.sgd(1.0, 0.9), optax.adam(1.0)])
def test_a_state_comes_back_bit_for_bit(tmp_path, optimizer):
    state = make_state(float("nan"), optimizer)
    Checkpoints(tmp_path).save(3, state, PROGRESS)
    found = tiny.latest(tmp_path, state)
    assert found is not None
    round_idx, restored, progress = found
    assert (round_idx, progress) == (3, PROGRESS)
    assert type(restored) is ServerState
    assert_same(restored, state)


def test_batch_statistics_come_back(tmp_path):
    state = make_state(model_state={"bn": {"mean": jnp.arange(3.0)}})
    Checkpoints(tmp_path).save(1, state, {})
    assert_same(Checkpoints(tmp_path).restore(1, state)[0], state)


def test_a_fresh_folder_has_no_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_round() is checkpoints.pivot_round() is None
    assert tiny.latest(tmp_path, make_state()) is None


def test_the_latest_two_and_the_pivot_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for i in range(1, 7):
        checkpoints.save(i, make_state(i), {"i": i}, keep=i == 2)
    assert sorted(p.name for p in (tmp_path / "checkpoints" / "rounds").iterdir()) == ["5", "6"]
    reopened = Checkpoints(tmp_path)
    assert (reopened.latest_round(), reopened.pivot_round()) == (6, 2)
    state, progress = reopened.restore(2, make_state())
    assert progress == {"i": 2}
    assert_same(state, make_state(2.0))
    assert_same(reopened.restore(5, make_state())[0], make_state(5.0))


def test_saving_a_round_again_changes_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1.0), {"first": True}, keep=True)
    checkpoints.save(1, make_state(2.0), {"first": False}, keep=True)
    assert checkpoints.restore(1, make_state())[1] == {"first": True}


def test_arrays_get_the_sharding_that_is_asked_for(tmp_path):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("clients",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    Checkpoints(tmp_path).save(1, make_state(), {})
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), make_state()
    )
    restored, _ = Checkpoints(tmp_path).restore(1, abstract)
    assert {leaf.sharding for leaf in jax.tree.leaves(restored)} == {everywhere}
    assert_same(restored, make_state())


def test_a_replicated_state_comes_back_on_one_device(tmp_path):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("clients",))
    replicated = jax.device_put(make_state(), NamedSharding(mesh, PartitionSpec()))
    Checkpoints(tmp_path).save(1, replicated, {})
    abstract = jax.eval_shape(make_state)
    restored, _ = Checkpoints(tmp_path).restore(1, abstract)
    assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(restored))
    assert_same(restored, make_state())


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (make_state(width=4), "a/w: float32[2,3], the config makes it float32[2,4]"),
        (make_state(optimizer=optax.sgd(1.0)), "count: int32[], the config makes it absent"),
        (make_state(model_state={"bn": jnp.ones(3)}), "model_state/bn: absent, the config"),
        (make_state()._replace(round_idx=jnp.float32(7)), "round_idx: int32[], the config"),
    ],
    ids=["shape", "optimizer", "model state", "dtype"],
)
def test_another_config_is_refused_in_one_line_that_says_what_differs(tmp_path, other, difference):
    Checkpoints(tmp_path).save(1, make_state(), {})
    with pytest.raises(ConfigError) as caught:
        tiny.latest(tmp_path, other)
    message = str(caught.value)
    assert "\n" not in message and "--workdir" in message and difference in message


SAVE_FOR_EVER = """
import sys, jax.numpy as jnp
from zo_fl.host.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
for i in range(1, 10_000):
    checkpoints.save(i, {"w": jnp.full(1_000_000, i, jnp.float32)}, {"i": i})
    print(i, flush=True)
"""


@pytest.mark.slow
def test_a_killed_save_is_not_picked_up(tmp_path):
    with commands.start("-c", SAVE_FOR_EVER, tmp_path) as child:
        while child.stdout.count("\n") < 3:
            assert child.poll() is None, child.stderr
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
        saved = int(child.stdout.rpartition("\n")[0].split()[-1])
    checkpoints = Checkpoints(tmp_path)
    abstract = {"w": jax.ShapeDtypeStruct((1_000_000,), jnp.float32)}
    found = tiny.latest(tmp_path, abstract)
    assert found is not None
    round_idx, state, progress = found
    # One more may have been completed without being announced.
    assert round_idx in (saved, saved + 1)
    assert progress == {"i": round_idx}
    assert bool((state["w"] == round_idx).all())
    checkpoints.save(round_idx + 1, state, {})
    names = {path.name for path in (tmp_path / "checkpoints" / "rounds").iterdir()}
    assert names == {str(round_idx), str(round_idx + 1)}


@pytest.mark.slow
def test_saving_and_restoring_prints_nothing(tmp_path):
    """Also with the logging level of a command run by absl."""
    code = """
import sys
from absl import app, logging
logging.set_verbosity(logging.INFO)
def main(argv):
    import logging, jax.numpy as jnp
    logging.getLogger("jax").setLevel(logging.ERROR)
    from zo_fl.host.checkpoint import Checkpoints
    state = {"w": jnp.ones(3)}
    for _ in range(2):
        checkpoints = Checkpoints(argv[1])
        checkpoints.save((checkpoints.latest_round() or 0) + 1, state, {}, keep=True)
        checkpoints.restore(checkpoints.latest_round(), state)
app.run(main)
"""
    done = commands.run("-c", code, tmp_path)
    assert done.stdout == done.stderr == "" and done.returncode == 0
