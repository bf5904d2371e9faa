"""Clients that stay silent, send NaN, or lie."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from zo_fl import api
from zo_fl.engine import keys
from zo_fl.host.metrics import read_metrics
from zo_fl.wrap import faults
from zo_fl.wrap.faults import Faults

NONE = Faults(0.0, 0.0, 0.0, "sign_flip")
# Dense messages, scalars, sums.
of_every_kind = pytest.mark.parametrize("algorithm", ("fedavg_all", "zo", "ridge"))


@functools.cache
def built_of(algorithm):
    # Larger steps of zo, so that what they change is more than rounding.
    return tiny.build(algorithm, **{"zo__lr": 1e-2} if algorithm == "zo" else {})


@functools.cache
def program(algorithm, wrong):
    """The first phase with faults, ``(state, data, run_key, drop: bool[K]) -> state, metrics``."""
    built = built_of(algorithm)
    phase = faults.inject(built.phases[0], built.task, wrong, 8)

    def one(state, data, run_key, drop):
        def sample(key, group):
            cohort = group.sample_cohort(key)
            return cohort._replace(valid=cohort.valid & ~drop[cohort.client_ids])

        groups = tuple(
            group._replace(sample_cohort=functools.partial(sample, group=group))
            for group in phase.groups
        )
        made = tiny.algorithm(built, phase._replace(groups=groups))
        return made.round(state, data, run_key)[:2]

    return tiny.start(built, phase), jax.jit(one)


def round_with(algorithm, wrong=NONE, round_idx=0, data=None, drop=(False,) * 8):
    """Returns ``(state before, state after, metrics)`` of a round of the first state.

    Args:
      algorithm: whose first phase.
      wrong: the faults.
      round_idx: the round.
      data: of the clients; None for what they have.
      drop: who is left out, ``bool[K]``.
    """
    built, (before, step) = built_of(algorithm), program(algorithm, wrong)
    before = before._replace(round_idx=jnp.full_like(before.round_idx, round_idx))
    return before, *step(before, data or built.data, built.run_key, np.array(drop))


@functools.cache
def fates_of(wrong, clients):
    def one(round_idx, client):
        return faults.fate(wrong, clients, keys.of_round(keys.run_key(0), round_idx).of(client))

    return jax.jit(jax.vmap(one, in_axes=(None, 0)))


def fates(wrong, round_idx=0, clients=8):
    return fates_of(wrong, clients)(round_idx, np.arange(clients))


def test_as_many_as_asked_for_and_others_in_each_round():
    some = NONE._replace(dropout=0.3, nan=0.1)
    many = [fates(some, round_idx, clients=200) for round_idx in range(20)]
    assert abs(np.mean([fate.silent for fate in many]) - 0.3) < 0.03
    assert abs(np.mean([fate.broken for fate in many]) - 0.1) < 0.02
    assert (many[0].silent != many[1].silent).any()


def test_liars_are_the_same_in_every_round_and_as_many_as_asked_for():
    some = NONE._replace(byzantine=0.25)
    first, later = (fates(some, round_idx).lies for round_idx in (0, 7))
    assert first.sum() == 2
    np.testing.assert_array_equal(first, later)


def test_without_faults_a_phase_stays_what_it_is():
    built = built_of("zo")
    assert faults.inject(built.phases[0], built.task, NONE, 8) is built.phases[0]


MANY = NONE._replace(dropout=0.5, nan=0.5)


@functools.cache
def round_in_which(nobody_answers):
    """Returns the first round in which all of MANY's clients, or some, have no numbers; and who."""
    for round_idx in range(100):
        fate = fates(MANY, round_idx)
        drop = np.asarray(fate.silent | fate.broken)
        both = fate.silent.any() and (fate.broken & ~fate.silent).any()
        if both and drop.all() == nobody_answers:
            return round_idx, fate, drop
    raise AssertionError("none of 100 rounds")


@pytest.mark.slow
@of_every_kind
def test_a_round_goes_on_without_those_who_do_not_answer_with_numbers(algorithm):
    round_idx, fate, drop = round_in_which(nobody_answers=False)
    _, after, metrics = round_with(algorithm, MANY, round_idx)
    _, expected, _ = round_with(algorithm, round_idx=round_idx, drop=drop)
    chex.assert_trees_all_close(after.params, expected.params, rtol=1e-5, atol=1e-6)
    assert metrics["bad_clients"] == (fate.broken & ~fate.silent).sum()


@pytest.mark.slow
@of_every_kind
def test_a_round_that_nobody_answers_leaves_the_state_as_it_was(algorithm):
    round_idx, fate, _ = round_in_which(nobody_answers=True)
    before, after, metrics = round_with(algorithm, MANY, round_idx)
    chex.assert_trees_all_equal(after._replace(round_idx=round_idx), before)
    assert after.round_idx == round_idx + 1 and metrics["is_empty"]
    assert metrics["bad_clients"] == (fate.broken & ~fate.silent).sum()


@pytest.mark.slow
def test_where_everyone_lies_the_update_is_the_lie():
    before, honest, _ = round_with("zo")
    _, lied, _ = round_with("zo", NONE._replace(byzantine=1.0, attack="scale"))
    expected = jax.tree.map(lambda a, b: a + 10 * (b - a), before.params, honest.params)
    chex.assert_trees_all_close(lied.params, expected, rtol=1e-4, atol=1e-5)


def test_codes_that_mean_something_beside_a_scale_are_not_scaled_twice():
    message = {
        "codes": jnp.array([1, -7], jnp.int8),
        "scale": jnp.array(0.5),
        "count": jnp.int32(3),
    }
    lie = faults.ATTACKS["scale"](message)
    assert lie["codes"].tolist() == [1, -7] and lie["scale"] == 5.0 and lie["count"] == 30
    assert faults.ATTACKS["sign_flip"](message)["scale"] == -0.5


@pytest.mark.slow
def test_liars_about_labels_learn_the_mirrored_ones():
    honest = built_of("ridge")
    examples = honest.data.examples
    labels = honest.task.num_classes - 1 - honest.task.labels(examples)
    others = honest.data._replace(examples=honest.task.relabel(examples, labels))
    _, expected, _ = round_with("ridge", data=others)
    _, mirrored, _ = round_with("ridge", NONE._replace(byzantine=1.0, attack="labels"))
    chex.assert_trees_all_close(mirrored.params, expected.params, rtol=1e-6)


@pytest.mark.slow
def test_rounds_that_nobody_answers_have_no_loss_and_end_nothing(tmp_path):
    summary = api.run(tiny.config("fedavg", faults__dropout=1.0), tmp_path, quiet=True)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["train_loss"] for row in rows] == [None, None]
    assert summary["rounds"] == 2 and summary["diverged_round"] is None


@pytest.mark.slow
def test_where_nobody_has_numbers_for_ten_rounds_in_turn_the_run_has_diverged(tmp_path):
    few = {"zo__num_rounds": 15, "run__rounds_per_jit": 4}
    config = tiny.config("fedavg_all", faults__nan=1.0, **few)

    def stop(row):
        if row["round"] == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.run(config, tmp_path, quiet=True, on_round=stop)
    summary = api.run(config, tmp_path, quiet=True)  # and goes on counting
    expected = "round 10: what 8 clients, 0 the first of them, sent is not finite"
    assert summary["divergence"] == expected
