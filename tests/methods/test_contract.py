"""What every method must satisfy. New ones are picked up from ``METHODS``, unmodified."""

import functools

import chex
import jax
import numpy as np
import pytest

from tests import tiny
from zo_fl.engine import keys, trees
from zo_fl.engine.algorithm import Cohort
from zo_fl.engine.layout import Engine
from zo_fl.engine.round import make_algorithm
from zo_fl.host.costs import phase_cost
from zo_fl.methods import METHODS

QUICK = ("fedavg", "zo")
slow = [pytest.mark.slow]
# Whose clients and server are those of another method, with other numbers.
PRESETS = ("fedavg_all", "mezo", "decomfl", "fedkseed")
# Laid out as those of others are, which stay: in one group of dense messages, scalars, or sums.
ALIKE = ("baffle", "fedkseed_pro", "fedzo", "gaussian_head", "head_sgd", "ridge_cg")


def names(marks, of=PRESETS):
    """Every method as a parameter, with what marks some of them."""
    marked = {name: [] for name in QUICK} | dict.fromkeys(of, marks)
    return [pytest.param(name, marks=marked.get(name, slow)) for name in sorted(METHODS)]


of_every_method = pytest.mark.parametrize("name", names(slow))
nightly = [pytest.mark.nightly]
of_every_round = pytest.mark.parametrize("name", names(nightly))  # which is compiled
of_every_layout = pytest.mark.parametrize("name", names(nightly, PRESETS + ALIKE))

# Rounding differs with the layout, and a loss difference of 1e-3 divided by 2 eps magnifies it:
# updates of order 0.1 to 1 agree to four digits.
TOLERANCE = dict(rtol=2e-4, atol=1e-4)
# Where clients are laid out otherwise sums are added up in another order.
NEARLY = dict(rtol=1e-5, atol=1e-6)
MAGNIFIED = dict(rtol=1e-4, atol=1e-5)  # by a system that the server solves


class Item:
    """A phase of an experiment; hashed by identity."""

    def __init__(self, built, phase, before):
        self.built, self.phase, self.before = built, phase, before

    def start(self):
        """The phase's first state; a new one, for rounds may donate theirs."""
        if self.before is None:
            return tiny.start(self.built, self.phase)
        return tiny.start(self.built, self.phase, self.before.phase, two_rounds(self.before)[0])

    def round(self, state, drawn):
        """A round with the cohorts ``drawn`` of the groups, compiled once for all cohorts."""
        data = self.built.data_of(self.phase)
        return program(self)(state, data, self.built.run_key, drawn)


@functools.cache
def phases_of(name, devices):
    built, items = tiny.build(name, run__num_devices=devices), []
    for phase in built.phases:
        items.append(Item(built, phase, items[-1] if items else None))
    return items


@functools.cache
def program(item):
    clients_per_vmap = 1 if item.built.engine.mesh.size == 1 else 2

    def one(state, data, run_key, drawn):
        groups = tuple(
            group._replace(sample_cohort=lambda key, cohort=cohort: cohort)
            for group, cohort in zip(item.phase.groups, drawn, strict=True)
        )
        engine = Engine(item.built.engine.mesh, clients_per_vmap)
        return make_algorithm(item.phase._replace(groups=groups), engine).round(
            state, data, run_key
        )

    return jax.jit(one)


@functools.cache
def two_rounds(item):
    """The state after two rounds with the cohorts that the phase draws, and their metrics."""
    state, history = item.start(), []
    for _ in range(tiny.ROUNDS):
        key = keys.round_key(item.built.run_key, state.round_idx)
        state, metrics, _ = item.round(state, [g.sample_cohort(key) for g in item.phase.groups])
        history.append(jax.device_get(metrics))
    return state, history


def with_cohort(item, order, padding=()):
    """One round with a given cohort in each group, of the size that it has anyway.

    ``order`` gives the ids of so many clients, ``padding`` takes no part, in the place of the last.
    """
    drawn = []
    for group in item.phase.groups:
        ids = list(order(group.cohort_size))
        valid = np.arange(group.cohort_size) < len(ids)
        drawn.append(Cohort(np.array([*ids, *padding][: group.cohort_size], np.int32), valid))
    return item.round(item.start(), drawn)


@of_every_round
def test_two_rounds_move_the_parameters_keep_all_shapes_and_are_traced_once(name):
    moved = []
    for item in phases_of(name, 4):
        state, history = two_rounds(item)
        moved.append(history[0]["update_norm"] > 0)
        assert int(state.round_idx) == tiny.ROUNDS
        assert "loss" not in history[0] or (moved[-1] and history[0] != history[1])
        assert all(np.isfinite(list(metrics.values())).all() for metrics in history)
        chex.assert_trees_all_equal_shapes_and_dtypes(item.start(), state)
        assert program(item)._cache_size() == 1
    assert any(moved)  # a phase that only prepares, or chooses, may leave them as they are


@of_every_layout
def test_on_four_devices_and_with_two_clients_at_once_it_is_nearly_the_same(name):
    for alone, item in zip(phases_of(name, 1), phases_of(name, 4), strict=True):
        (expected, of_one), (state, of_four) = two_rounds(alone), two_rounds(item)
        solved = any(one.phase.server.reducer.is_sum for one in phases_of(name, 4))
        tolerance = MAGNIFIED if solved else NEARLY
        chex.assert_trees_all_close(state.params, expected.params, **tolerance)
        losses = [[metrics.get("loss", 0.0) for metrics in each] for each in (of_four, of_one)]
        np.testing.assert_allclose(*losses, rtol=1e-5)


@of_every_round
def test_the_result_does_not_depend_on_the_order_of_the_cohort(name):
    for item in phases_of(name, 4):
        reference = with_cohort(item, range)[0]
        got = with_cohort(item, lambda size: np.random.default_rng(0).permutation(size))[0]
        chex.assert_trees_all_close(got.params, reference.params, **TOLERANCE)


@of_every_round
def test_whoever_pads_a_cohort_changes_nothing(name):
    for item in phases_of(name, 4):
        three = lambda size: [1, 4, 0]  # noqa: E731
        reference, metrics, _ = with_cohort(item, three, padding=[0] * 5)
        got, padded, _ = with_cohort(item, three, padding=[7, 6, 5, 3, 2])
        chex.assert_trees_all_equal(got.params, reference.params)
        assert metrics == padded


@of_every_method
def test_the_uplink_is_the_bytes_of_the_messages(name):
    for item in phases_of(name, 4):
        state, data, uplink = item.start(), item.built.data_of(item.phase), 0
        for group in item.phase.groups:
            client, own = group.client, tiny.own_keys(item.built, 3)
            batches = [
                trees.squeeze(tiny.gathered(data, np.array([sender])))
                for sender in (group.eligible if client.sent_bytes else [3])
            ]
            result = jax.eval_shape(client.update, state, batches[0], own)
            whole = trees.num_bytes(result.message)
            # What a message leaves out, its own file says (and its own test checks).
            sent = [client.sent_bytes(batch) for batch in batches] if client.sent_bytes else [whole]
            assert max(sent) <= whole + 2
            uplink += sum(map(int, sent)) * (group.cohort_size // len(sent))
            uplink += group.cohort_size * trees.num_bytes(result.model_state)
        cost = phase_cost(item.phase, state.params, state.model_state, data)
        assert cost.uplink == uplink


@pytest.mark.parametrize(
    ("name", "overrides", "suffices"),
    (
        pytest.param("fedavg", {}, True, marks=slow),
        pytest.param("zo", {"zo__seed_policy": "shared"}, True, marks=slow),
        pytest.param("ridge", {}, True, marks=slow),
        ("zo", {}, False),  # each message is rebuilt along its own client's directions
        ("fedkseed", {}, False),
        ("ridge", {"ridge__encoding": "int8"}, False),  # by scales of its own
        ("fedavg", {"robust__rule": "median"}, False),
        ("fedavg", {"robust__rule": "clip"}, False),
    ),
)
def test_where_sums_suffice_the_round_follows_from_the_sum_of_what_clients_send(
    name, overrides, suffices
):
    """Which NumPy adds up here, of decoded and weighed messages: none is read by itself.

    Secure aggregation hides all but the sum (Bonawitz et al. 2017).
    """
    built = tiny.build(name, **overrides)
    phase = built.phases[0]
    assert phase.sums_suffice == suffices
    if not suffices:
        return
    state = tiny.start(built, phase)
    updates, _, weights = tiny.first_updates(built, phase, state)
    shares = weights > 0 if phase.server.reducer.is_sum else weights / weights.sum()
    total = jax.tree.map(lambda leaf: np.tensordot(shares, np.float64(leaf), axes=1), updates)
    after, *_ = jax.jit(tiny.algorithm(built, phase).round)(
        state, built.data_of(phase), built.run_key
    )
    params, strategy_state = tiny.server_step(built, phase, state, total)
    if phase.server.note:
        everyone = np.arange(len(weights))
        strategy_state = phase.server.note(strategy_state, everyone, weights > 0)
    found = after.params, after.strategy_state
    chex.assert_trees_all_close(found, (params, strategy_state), rtol=1e-4, atol=1e-5)
