"""Keys, and a ledger of an earlier version, still stand for what they stood for."""

import jax
import jax.numpy as jnp
import numpy as np

from tests import tiny
from tests.golden import vectors
from zo_fl.compiled import recorded_shapes
from zo_fl.host import ledger


def test_keys_stand_for_what_they_stood_for_in_version_0_2():
    found, stored = vectors.computed(), vectors.stored()["vectors"]
    assert jax.tree.structure(found) == jax.tree.structure(stored)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.flatten_with_path(stored)[0]]
    for path, new, old in zip(paths, jax.tree.leaves(found), jax.tree.leaves(stored), strict=True):
        # Normal draws go through a function that differs in the last digit between machines.
        np.testing.assert_allclose(new, old, rtol=1e-5, atol=2e-6, err_msg=path)


def test_every_bit_of_a_rademacher_direction_is_as_it_was():
    drawn = vectors.computed()["directions"]["rademacher"]
    assert drawn == vectors.stored()["vectors"]["directions"]["rademacher"]
    assert set(np.abs(jax.tree.leaves(drawn)).tolist()) == {0.75}


def test_a_ledger_of_version_0_2_rebuilds_the_same_parameters_to_the_bit():
    # All factors are powers of two: multiplied and added in one operation or in two, the bits are
    # the same on every machine.
    built = tiny.build(
        "zo",
        model__width=1.0,
        **{name.replace(".", "__"): value for name, value in vectors.stored()["config"].items()},
    )
    (phase,) = built.phases
    algorithm, state = tiny.algorithm(built, phase), tiny.start(built, phase)
    state = state._replace(params=vectors.start(state.params))
    like = recorded_shapes(algorithm, state, built.data, built.run_key)
    entries = ledger.read(vectors.FOLDER)
    assert [entry.round for entry in entries] == [1, 2, 3, 4]
    apply = jax.jit(algorithm.apply)
    for entry in entries:
        records, _ = jax.tree.unflatten(jax.tree.structure(like), entry.leaves)
        state = apply(state, records, built.run_key)
    assert vectors.digest(state.params) == vectors.stored()["digest"]
    assert float(jnp.abs(state.params["head"]["kernel"]).max()) > 0
