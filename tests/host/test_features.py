"""Features that runs leave for each other are the ones that each would compute."""

import chex
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import zo_fl
from tests import tiny
from zo_fl import api
from zo_fl.engine import layout
from zo_fl.engine.layout import AXIS
from zo_fl.host import evaluate, features


def like(value=0.0):
    return {"a": np.full((2, 3), value, np.float32), "b": np.arange(4, dtype=np.int32)}


def never():
    raise AssertionError("made again")


def test_the_next_run_finds_what_one_has_left(tmp_path):
    made = features.load_or_make(tmp_path / "new", "x", like(), lambda: like(3.0))
    found = features.load_or_make(tmp_path / "new", "x", like(), never)
    chex.assert_trees_all_equal(made, found, like(3.0))
    assert found["b"].dtype == np.int32


@pytest.mark.parametrize(
    "damage",
    (
        lambda data: b"",
        lambda data: data[:40],
        lambda data: bytes([*data[:150], data[150] ^ 1, *data[151:]]),
    ),
)
def test_a_damaged_file_is_made_anew(tmp_path, damage):
    features.load_or_make(tmp_path, "x", like(), lambda: like(1.0))
    path = tmp_path / "x.npz"
    path.write_bytes(damage(path.read_bytes()))
    again = features.load_or_make(tmp_path, "x", like(), lambda: like(1.0))
    chex.assert_trees_all_equal(again, like(1.0))
    features.load_or_make(tmp_path, "x", like(), never)


def test_a_folder_that_cannot_be_written_to_is_done_without(tmp_path):
    (tmp_path / "file").write_text("")
    assert features.load_or_make(tmp_path / "file", "x", like(), like)["a"].shape == (2, 3)


def test_few_files_are_left_and_names_tell_programs_and_arrays_apart(tmp_path):
    names = [features.digest(text, like(v)) for text in ("p", "q", "r") for v in (0.0, 1.0)]
    assert len(set(names)) == 6 and names[0] == features.digest("p", like(0.0))
    for name in names:
        features.load_or_make(tmp_path, name, like(), like)
    left = {path.stem for path in tmp_path.iterdir()}
    assert len(left) == 5 and names[-1] in left


@pytest.mark.slow
def test_a_model_is_evaluated_on_its_features_as_on_examples():
    built = tiny.build("fedavg", run__num_devices=2)
    params, statistics = built.task.init(built.run_key)
    measure = evaluate.make_evaluate(built.task)
    for examples in evaluate.make_sets(built.federation, 7, built.engine).values():
        batches = examples.examples, examples.mask
        seen = jax.jit(evaluate.make_seen(built.task, 3))(params, statistics, batches)
        kept = measure(params, statistics, examples._replace(features=seen))
        chex.assert_trees_all_close(measure(params, statistics, examples), kept, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("are_cores", (False, True))
def test_each_device_computes_a_part_of_the_features_that_clients_keep(monkeypatch, are_cores):
    monkeypatch.setattr(features, "_ROWS", 50)  # so that there are several pieces
    built = tiny.build("head_sgd", run__num_devices=3, head_sgd__cache=True)
    engine, phase = built.engine, built.phases[-1]
    if are_cores:
        cores = tuple(engine.mesh.devices.flat)
        engine = engine._replace(mesh=layout.make_mesh(cores[:1]), cores=cores)
    cache, state = features.FeatureCache(built.task, engine, None), tiny.start(built, phase)
    state, data = jax.device_put((state, built.data), engine.replicated)
    found = cache.data_of(phase.keeping, state, data).examples
    model, examples = (state.params, state.model_state), data.examples
    count = len(examples["label"])
    assert all(leaf.sharding == engine.replicated for leaf in jax.tree.leaves(found))
    expected = jax.jit(phase.keeping.compute)(*model, examples)
    found = jax.tree.map(lambda leaf: leaf[:count], found)
    chex.assert_trees_all_close(found, expected, atol=1e-3)
    sizes = []

    def compute(params, model_state, part):
        sizes.append(len(part["label"]))
        return part

    cut = features.Cut(6, count // 6, P(AXIS), P())
    arguments = jax.device_put((*model, examples), engine.wide.replicated)
    divided = jax.jit(features._divided(compute, engine.wide, cut))
    second = jax.tree.map(lambda leaf: leaf[6:12], examples)
    chex.assert_trees_all_equal(divided(*arguments, 6), second)
    assert sizes == [2]


@pytest.mark.nightly
@pytest.mark.slow
def test_runs_that_share_end_as_those_that_do_not(tmp_path):
    pool, config = tmp_path / "pool", tiny.config("gaussian_head")
    api.run(tiny.config("ridge"), tmp_path / "other", shared=pool, quiet=True)
    alone = api.run(config, tmp_path / "alone", quiet=True)
    sharing = api.run(config, tmp_path / "sharing", shared=pool, quiet=True)
    for key in ("final_accuracy", "best_val_accuracy"):
        assert sharing[key] == pytest.approx(alone[key], abs=0.01)
    last, other = (zo_fl.read_metrics(tmp_path / name)[-1] for name in ("alone", "sharing"))
    assert other["test_loss"] == pytest.approx(last["test_loss"], rel=1e-3)
    for key in ("low_passes", "low_uplink_bytes", "forward_passes"):
        assert sharing[key] == alone[key]
    assert len(list(pool.iterdir())) == 3  # of clients, test and validation: they serve all
