import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests import tiny
from zo_fl.engine.algorithm import ServerState
from zo_fl.engine.fields import ConfigError
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


def test_a_state_comes_back_bit_for_bit(tmp_path):
    state = make_state(float("nan"), model_state={"bn": {"mean": jnp.arange(3.0)}})
    assert tiny.latest(tmp_path, state) is None
    Checkpoints(tmp_path).save(3, state, PROGRESS)
    found = tiny.latest(tmp_path, state)
    assert found is not None
    round_idx, restored, progress = found
    assert (round_idx, progress) == (3, PROGRESS)
    assert type(restored) is ServerState
    assert_same(restored, state)


def test_the_latest_two_are_kept_and_one_that_is_kept_for_ever(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for i in range(1, 7):
        checkpoints.save(i, make_state(i), {"i": i}, keep=i == 2)
    assert sorted(p.name for p in (tmp_path / "checkpoints" / "rounds").iterdir()) == ["5", "6"]
    reopened = Checkpoints(tmp_path)
    assert reopened.rounds() == [2, 5, 6] and reopened.latest_round() == 6
    state, progress = reopened.restore(2, make_state())
    assert progress == {"i": 2}
    assert_same(state, make_state(2.0))
    assert_same(reopened.restore(5, make_state())[0], make_state(5.0))


def test_saving_a_round_again_changes_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1.0), {"first": True}, keep=True)
    checkpoints.save(1, make_state(2.0), {"first": False}, keep=True)
    assert checkpoints.restore(1, make_state())[1] == {"first": True}


@pytest.mark.parametrize("saved, wanted", (("one", "all"), ("all", "one")))
def test_arrays_get_the_sharding_that_is_asked_for(tmp_path, saved, wanted):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("clients",))
    there = {"all": NamedSharding(mesh, PartitionSpec()), "one": None}
    Checkpoints(tmp_path).save(1, jax.device_put(make_state(), there[saved]), {})
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there[wanted]), make_state()
    )
    restored, _ = Checkpoints(tmp_path).restore(1, like)
    expected = set(jax.devices()) if wanted == "all" else {jax.devices()[0]}
    assert all(leaf.devices() == expected for leaf in jax.tree.leaves(restored))
    assert_same(restored, make_state())


def test_another_config_is_refused_in_one_line_that_says_what_differs(tmp_path):
    Checkpoints(tmp_path).save(1, make_state(), {})
    for other, difference in (
        (make_state(width=4), "a/w: float32[2,3], the config makes it float32[2,4]"),
        (make_state(optimizer=optax.sgd(1.0)), "count: int32[], the config makes it absent"),
        (make_state(model_state={"bn": jnp.ones(3)}), "model_state/bn: absent, the config"),
        (make_state()._replace(round_idx=jnp.float32(7)), "round_idx: int32[], the config"),
    ):
        with pytest.raises(ConfigError) as caught:
            tiny.latest(tmp_path, other)
        message = str(caught.value)
        assert "\n" not in message and "--workdir" in message and difference in message
