"""Clients that stay silent, answer late, send NaN, or lie."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zo_fl
from tests import tiny
from zo_fl import api as train
from zo_fl.engine import keys
from zo_fl.engine.errors import ConfigError
from zo_fl.host.metrics import read_metrics
from zo_fl.wrap import faults as faults_
from zo_fl.wrap.faults import Faults

pytestmark = pytest.mark.slow

METHODS = ("fedavg_all", "zo", "fedkseed", "ridge")
SHARED = dict(zo__seed_policy="shared", zo__weights="uniform")
NOBODY = np.zeros(8, bool)
OF_MANY_KINDS = dict(faults__dropout=0.4, faults__straggler=0.3, faults__nan=0.1, seed=1)
NONE = Faults(0.0, 0.0, 0.0, 0.0, "sign_flip", 1.0)


@functools.cache
def built_of(algorithm, **overrides):
    # Larger steps of zo, so that what they change is more than rounding.
    return tiny.build(algorithm, **({"zo__lr": 1e-2} if algorithm == "zo" else {}) | overrides)


def first_round(built, change=lambda phase, *how: phase):
    """Returns ``(*how, data=...) -> (state before, state after, metrics)`` of the first round.

    Args:
      built: the experiment.
      change: ``(phase, *how) -> phase``; as ``how`` is an argument of the program, one is compiled
        for all of its values.
    """

    @jax.jit
    def step(state, data, how):
        phase = change(built.phases[0], *how)
        return tiny.algorithm(built, phase).round(state, data, built.run_key)

    def run(*how, data=built.data):
        before = tiny.start(built, built.phases[0])
        after, metrics, _ = step(before, data, how)
        return before, after, metrics

    return run


@functools.cache
def one_round(algorithm, **overrides):
    """States before and after the first round of an algorithm."""
    return first_round(built_of(algorithm, **overrides))()[:2]


@functools.cache
def round_without(algorithm):
    """Returns ``(bool[K]) -> ...``: the first round without some clients, or of other data."""

    def without(phase, drop):
        groups = []
        for group in phase.groups:

            def sample(key, group=group):
                cohort = group.sample_cohort(key)
                return cohort._replace(valid=cohort.valid & ~drop[cohort.client_ids])

            groups.append(group._replace(sample_cohort=sample))
        return phase._replace(groups=tuple(groups))

    return first_round(built_of(algorithm), without)


@functools.cache
def round_with_silence(algorithm):
    """Returns ``(dropout, nan) -> ...``: the first round of clients of which so many are so."""
    built = built_of(algorithm)

    def change(phase, dropout, nan):
        wrong = NONE._replace(dropout=dropout, nan=nan)
        return faults_._misbehave(phase, built.task, wrong, 8)

    return first_round(built, change)


def round_with_a_liar(algorithm, **overrides):
    """Returns ``(strength) -> ...``: of 1 is what a liar who scales sends the truth."""
    built = built_of(algorithm, **overrides)

    def change(phase, strength):
        wrong = NONE._replace(byzantine=0.125, attack="scale", strength=strength)
        return faults_.inject(phase, built.task, wrong, 8)

    return first_round(built, change)


@functools.cache
def fates_of(faults, clients):
    one = functools.partial(faults_.fate, faults, clients)
    return jax.jit(jax.vmap(one, in_axes=(None, None, 0)))


def fates(faults, round_idx=0, clients=8):
    return fates_of(faults, clients)(keys.run_key(0), round_idx, np.arange(clients))


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


@pytest.mark.parametrize("algorithm", METHODS)
def test_a_round_goes_on_without_those_who_do_not_answer_with_numbers(algorithm):
    fate = fates(NONE._replace(dropout=0.3, nan=0.3))
    drop = np.asarray(fate.silent | fate.broken)
    assert fate.silent.any() and (fate.broken & ~fate.silent).any() and not drop.all()
    _, after, metrics = round_with_silence(algorithm)(0.3, 0.3)
    _, expected, _ = round_without(algorithm)(drop)
    chex.assert_trees_all_close(after.params, expected.params, rtol=1e-5, atol=1e-6)
    assert metrics["bad_clients"] == (fate.broken & ~fate.silent).sum()


@pytest.mark.parametrize("algorithm", METHODS)
def test_a_round_that_nobody_answers_leaves_the_state_as_it_was(algorithm):
    before, after, metrics = round_with_silence(algorithm)(1.0, 0.0)
    chex.assert_trees_all_equal(after._replace(round_idx=0), before._replace(round_idx=0))
    assert after.round_idx == 1 and metrics["is_empty"] and not metrics["bad_clients"]


@pytest.mark.parametrize("algorithm", ("fedavg_all", "zo"))
def test_late_answers_are_those_of_the_round_before(algorithm):
    late = built_of(algorithm, faults__straggler=1.0)
    step = jax.jit(tiny.algorithm(late, late.phases[0]).round)
    states = [tiny.start(late, late.phases[0])]
    for _ in range(2):
        states.append(step(states[-1], late.data, late.run_key)[0])
    _, in_time, _ = round_without(algorithm)(NOBODY)
    first, second = (
        jax.tree.map(lambda a, b: a - b, before.params, after.params)
        for before, after in itertools.pairwise(states)
    )
    # There is no round before the first; everyone answers the first one's question in the second.
    chex.assert_trees_all_close(states[1].params, in_time.params, rtol=1e-6, atol=1e-7)
    chex.assert_trees_all_close(second, first, rtol=1e-3, atol=2e-6)


def test_nobody_can_be_late_where_all_share_one_round_s_directions():
    with pytest.raises(ConfigError, match="straggler is 0.2, and the server of phase decomfl"):
        tiny.build("decomfl", faults__straggler=0.2)


@pytest.mark.parametrize(
    ("algorithm", "attack", "factor"),
    (("fedavg_all", "sign_flip", -2.0), ("zo", "scale", 2.0)),
)
def test_where_everyone_lies_the_update_is_the_lie(algorithm, attack, factor):
    lying = dict(faults__byzantine=1.0, faults__attack=attack, faults__strength=2.0)
    before, honest, _ = round_without(algorithm)(NOBODY)
    _, lied = one_round(algorithm, **lying)
    expected = jax.tree.map(lambda a, b: a + factor * (b - a), before.params, honest.params)
    chex.assert_trees_all_close(lied.params, expected, rtol=1e-4, atol=1e-5)


def test_noise_is_as_large_as_what_it_replaces():
    before, honest, _ = round_without("fedavg_all")(NOBODY)
    _, noise = one_round("fedavg_all", faults__byzantine=1.0, faults__attack="noise")
    sizes = [
        np.linalg.norm(after.params["head"]["kernel"] - before.params["head"]["kernel"])
        for after in (honest, noise)
    ]
    cosine = np.vdot(
        honest.params["head"]["kernel"] - before.params["head"]["kernel"],
        noise.params["head"]["kernel"] - before.params["head"]["kernel"],
    ) / np.prod(sizes)
    # Of 8 independent ones the mean is about a third as long, the honest ones agree in part.
    assert 0.2 < sizes[1] / sizes[0] < 1.5 and abs(cosine) < 0.2


@pytest.mark.parametrize("algorithm", ("fedavg_all", "ridge"))
def test_liars_about_labels_learn_the_mirrored_ones(algorithm):
    lying = dict(faults__byzantine=1.0, faults__attack="labels")
    honest = built_of(algorithm)
    classes = honest.task.num_classes
    examples = honest.data.examples
    others = honest.task.relabel(examples, classes - 1 - honest.task.labels(examples))
    expected = round_without(algorithm)(NOBODY, data=honest.data._replace(examples=others))[1]
    _, mirrored = one_round(algorithm, **lying)
    chex.assert_trees_all_close(mirrored.params, expected.params, rtol=1e-6)


@pytest.mark.parametrize(
    ("algorithm", "rules"),
    (
        # Median and trimmed mean differ in a number: see tests/core/test_robust.py.
        ("fedavg_all", ("trimmed_mean", "clip")),
        ("zo", ("median", "clip")),
        ("heterofl", ("median",)),  # of sums both are clipped, here of two groups together
        ("ridge", ("trimmed_mean",)),
    ),
)
def test_a_rule_bounds_what_one_liar_does(algorithm, rules):
    fields = SHARED if algorithm == "zo" else {}
    undefended = round_with_a_liar(algorithm, **fields)
    before, honest, _ = undefended(1.0)
    _, lied, _ = undefended(1e4)

    def distance(state):
        moved = jax.tree.map(lambda a, b: np.sum((a - b) ** 2), *map(params_of, (state, honest)))
        return sum(jax.tree.leaves(moved))

    for rule in rules:
        defended = round_with_a_liar(algorithm, **fields, robust__rule=rule, robust__trim=0.2)
        is_sum = algorithm in ("ridge", "heterofl")
        assert distance(defended(1e4)[1]) < distance(lied) / (2 if is_sum else 100), rule
    assert distance(before) > 0


def params_of(state):
    return jax.tree.map(np.float64, state.params)


def test_the_mean_of_shared_directions_is_what_a_rule_without_liars_nearly_gives():
    _, mean = one_round("zo", **SHARED)
    _, trimmed = one_round("zo", **SHARED, robust__rule="trimmed_mean", robust__trim=0)
    chex.assert_trees_all_close(mean.params, trimmed.params, rtol=1e-5, atol=1e-6)


class TestRuns:
    def test_a_run_stopped_and_resumed_ends_bit_identical(self, tmp_path):
        def stop(row):
            if row["round"] == 3:
                raise KeyboardInterrupt

        config = tiny.config("fedavg", warmup__num_rounds=4, **OF_MANY_KINDS)
        train.run(config, tmp_path / "whole", quiet=True)
        with pytest.raises(KeyboardInterrupt):
            train.run(config, tmp_path / "cut", quiet=True, on_round=stop)
        train.run(config, tmp_path / "cut", quiet=True)
        whole, cut = (zo_fl.load(tmp_path / name).params for name in ("whole", "cut"))
        chex.assert_trees_all_equal(whole, cut)

    def test_rounds_that_nobody_answers_have_no_loss_and_end_nothing(self, tmp_path):
        summary = train.run(tiny.config("fedavg", faults__dropout=1.0), tmp_path, quiet=True)
        rows = read_metrics(tmp_path / "metrics.jsonl")
        assert [row["train_loss"] for row in rows] == [None, None]
        assert summary["rounds"] == 2 and summary["diverged_round"] is None

    def test_where_nobody_has_numbers_for_ten_rounds_in_turn_the_run_has_diverged(self, tmp_path):
        config = tiny.config("zo", faults__nan=1.0, zo__num_rounds=15, run__rounds_per_jit=4)

        def stop(row):
            if row["round"] == 6:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train.run(config, tmp_path, quiet=True, on_round=stop)
        summary = train.run(config, tmp_path, quiet=True)  # and goes on counting
        assert summary["divergence"] == (
            "round 10: what 8 clients, 0 the first of them, sent is not finite"
        )

    def test_a_round_in_which_all_send_nan_ends_nothing_where_faults_are_tolerated(self, tmp_path):
        config = tiny.config("fedavg", faults__nan=0.6, warmup__cohort_size=2, warmup__num_rounds=8)
        summary = train.run(config, tmp_path, quiet=True)
        losses = [row["train_loss"] for row in read_metrics(tmp_path / "metrics.jsonl")]
        assert None in losses and losses.count(None) < 8
        assert summary["rounds"] == 8 and summary["diverged_round"] is None

    def test_who_lies_beyond_all_bounds_stops_a_run_that_is_not_tolerant(self, tmp_path):
        # Several steps a client: the second one is of a model that is not finite.
        many_steps = dict(warmup__lr=1e30, warmup__batch_size=20)
        config = tiny.config("fedavg_all", **many_steps, zo__num_rounds=12)
        assert train.run(config, tmp_path / "a", quiet=True)["diverged_round"] == 1
        config["robust"]["tolerant"] = True
        assert train.run(config, tmp_path / "b", quiet=True)["diverged_round"] == 10


def test_each_client_draws_its_own_noise():
    message = jnp.ones((50,))
    first, second = (
        faults_._noise(message, keys.client_key(keys.run_key(0), client), 2.0) for client in (0, 1)
    )
    assert abs(np.std(first) - 2) < 0.6 and abs(np.corrcoef(first, second)[0, 1]) < 0.5
