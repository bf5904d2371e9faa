"""Partitions: equal clients, no example twice, and the skew that each partition promises."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zo_fl.data import partition
from zo_fl.engine.types import HIGH

CIFAR_LABELS = np.arange(50_000) % 10
KINDS = {
    "dirichlet": lambda labels, clients, rng: partition.dirichlet(labels, clients, 0.1, rng),
    "extreme": lambda labels, clients, rng: partition.dirichlet(labels, clients, 1e-3, rng),
    "even": lambda labels, clients, rng: partition.dirichlet(labels, clients, 1e4, rng),
    "iid": partition.iid,
    "shards": partition.shards,
}


def _rng(seed=0):
    return np.random.default_rng(seed)


def _summary(labels, rows, tiers, num_classes):
    return partition.summarize(labels, rows, np.full(*rows.shape), tiers, num_classes)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    num_examples=st.integers(40, 300),
    num_clients=st.integers(1, 20),
    num_classes=st.integers(1, 12),
    seed=st.integers(0, 999),
)
def test_clients_are_equal_in_size_and_share_no_example(
    kind, num_examples, num_clients, num_classes, seed
):
    labels = _rng(seed).integers(0, num_classes, num_examples)
    rows = KINDS[kind](labels, num_clients, _rng(seed))
    assert rows.dtype == np.int32 and rows.shape[0] == num_clients
    assert len(np.unique(rows)) == rows.size and rows.min() >= 0 and rows.max() < num_examples
    assert num_examples - rows.size < num_clients * (2 if kind == "shards" else 1)
    np.testing.assert_array_equal(rows, KINDS[kind](labels, num_clients, _rng(seed)))


def test_another_seed_gives_another_partition():
    for divide in KINDS.values():
        assert not np.array_equal(*(divide(CIFAR_LABELS, 10, _rng(seed)) for seed in (0, 1)))


def _one_at_a_time(shares, stock, size):
    """Returns the exact distribution {counts: probability} of drawing labels one at a time."""
    states = {(0,) * len(stock): 1.0}
    for _ in range(size):
        following = {}
        for taken, probability in states.items():
            live = [p if t < s else 0.0 for p, t, s in zip(shares, taken, stock, strict=True)]
            for label, share in enumerate(live):
                if share:
                    after = tuple(t + (i == label) for i, t in enumerate(taken))
                    gained = probability * share / sum(live)
                    following[after] = following.get(after, 0.0) + gained
        states = following
    return states


def test_drawing_in_blocks_has_the_distribution_of_drawing_one_at_a_time():
    shares, stock, size, trials = np.array([0.6, 0.3, 0.1]), np.array([2, 1, 3]), 4, 5_000
    expected = _one_at_a_time(shares, stock, size)
    rng = _rng()
    found = {}
    for _ in range(trials):
        counts = tuple(int(c) for c in partition._take(shares, stock, size, rng))
        found[counts] = found.get(counts, 0) + 1
    assert set(found) <= set(expected)
    for counts, probability in expected.items():
        spread = np.sqrt(probability * (1 - probability) / trials)
        assert abs(found.get(counts, 0) / trials - probability) < 5 * spread + 1e-9


def test_shares_too_small_for_a_float_still_end():
    # Client 5 of this draw has denormal shares of all labels that are left.
    labels = _rng(822).integers(0, 4, 295)
    rows = partition.dirichlet(labels, 6, 0.1, _rng(822))
    assert len(np.unique(rows)) == rows.size == 6 * 49


def test_a_client_whose_labels_ran_out_is_filled_from_what_is_left():
    counts = partition._take(np.array([1.0, 0, 0]), np.array([2, 3, 3]), 6, _rng())
    assert counts[0] == 2 and counts.sum() == 6
    np.testing.assert_array_equal(
        partition._take(np.zeros(3), np.array([2, 3, 3]), 8, _rng()), [2, 3, 3]
    )


def test_cifar10_with_alpha_a_tenth_has_the_papers_skew():
    figures, labels_held = [], []
    for seed in range(8):
        rows = partition.dirichlet(CIFAR_LABELS, 50, 0.1, _rng(seed))
        tiers = partition.draw_tiers(50, 0.1, _rng(seed))
        figures.append(_summary(CIFAR_LABELS, rows, tiers, 10))
        labels_held.append([len(np.unique(CIFAR_LABELS[client])) for client in rows])
    for tier, figure, expected, spread in (
        ("all", "labels_per_client", 4.8, 0.3),
        ("all", "dominant_share", 0.68, 0.04),
        ("high", "classes_covered", 9.5, 0.6),
        ("high", "tv_from_uniform", 0.38, 0.1),
    ):
        mean = np.mean([found[tier][figure] for found in figures])
        assert mean == pytest.approx(expected, abs=spread), figure
    by_client = np.mean(labels_held, axis=0)
    assert by_client[:10].mean() > by_client[-10:].mean() + 1, "late clients are more skewed"


def test_iid_clients_hold_every_label_and_skewed_ones_few():
    held = {
        kind: [len(np.unique(CIFAR_LABELS[rows])) for rows in divide(CIFAR_LABELS, 20, _rng())]
        for kind, divide in KINDS.items()
    }
    assert set(held["iid"]) == set(held["even"]) == {10}
    assert max(held["shards"]) <= 4 and np.mean(held["extreme"]) < 4


@pytest.mark.parametrize(
    ("size", "fraction", "train", "val"), [(125, 0.1, 112, 13), (10, 0.9, 1, 9), (10, 0.0, 10, 0)]
)
def test_validation_takes_its_share_of_each_client(size, fraction, train, val):
    rows = np.arange(3 * size, dtype=np.int32).reshape(3, size)
    kept, held_out = partition.split_validation(rows, fraction, _rng())
    assert kept.shape == (3, train) and held_out.shape == (3, val)
    np.testing.assert_array_equal(np.sort(np.hstack([kept, held_out]), axis=1), rows)
    if 0 < val < size:
        assert not np.array_equal(held_out, rows[:, train:]), "rows are shuffled first"


def test_the_papers_splits_have_their_count_of_high_clients():
    for fraction, count in ((0.1, 5), (0.3, 15), (0.5, 25), (0.7, 35), (0.9, 45), (1, 50)):
        assert (partition.draw_tiers(50, fraction, _rng()) == HIGH).sum() == count


def test_tiers_are_drawn_at_random_and_never_by_index():
    share = np.mean([partition.draw_tiers(10, 0.3, _rng(seed)) for seed in range(2000)], axis=0)
    np.testing.assert_allclose(share, 0.3, atol=0.06)


def test_a_summary_states_known_figures():
    labels = np.array([0, 0, 0, 1, 2, 3, 0, 1])
    found = _summary(labels, np.arange(8).reshape(2, 4), np.array([1, 0]), 4)
    assert found["high"] == {
        "clients": 1, "examples": 4, "classes_covered": 2, "labels_per_client": 2.0,
        "dominant_share": 0.75, "tv_from_uniform": 0.5,
    }  # fmt: skip
    assert found["low"]["tv_from_uniform"] == 0 and found["low"]["labels_per_client"] == 4
    assert found["all"]["examples"] == 8 and found["all"]["classes_covered"] == 4
    assert json.loads(json.dumps(found)) == found


def test_a_summary_prints_in_columns_within_80_characters_also_without_low_clients():
    rows = np.arange(1_000_000).reshape(50, -1)
    found = _summary(np.arange(1_000_000) % 1000, rows, np.ones(50), 1000)
    lines = partition.format_summary(found).splitlines()
    assert [line.split()[0] for line in lines] == ["tier", "high", "low", "all"]
    assert len({len(line) for line in lines}) == 1 and len(lines[0]) <= 80
    assert "1,000,000" in lines[1] and "1000 of 1000" in lines[1]


def test_a_smaller_alpha_is_never_less_skewed():
    labels = np.repeat(np.arange(10), 400)

    def labels_a_client(alpha):
        rows = partition.dirichlet(labels, 20, alpha, np.random.default_rng(0))
        return np.mean([len(np.unique(labels[row])) for row in rows])

    found = [labels_a_client(alpha) for alpha in (0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-6, 1e-12)]
    assert found[0] > found[1] > found[2] and max(found[3:]) <= found[2]
    assert max(found[4:]) - min(found[4:]) < 0.2, "there is nothing more to leave out"
