"""Phase two is its first state and a ledger of scalars, which rebuild any round bit for bit."""

import chex
import numpy as np
import pytest

import zo_fl
from experiments.inspection.states import Replay
from tests import tiny
from zo_fl import api
from zo_fl.engine.fields import ConfigError
from zo_fl.host import ledger

CNN = {"model__name": "cnn", "model__norm": "batch", "model__width": 0.25}


@pytest.mark.slow
def test_every_round_of_phase_two_is_rebuilt_bit_for_bit(tmp_path):
    config = tiny.config("zowarmup", zo__num_rounds=4, run__checkpoint_every=1)
    api.run(config, tmp_path, quiet=True)
    replayed = Replay(tmp_path)
    found = dict(replayed.states([2, 3, 5, 6]))
    assert list(found) == [2, 3, 5, 6]
    chex.assert_trees_all_equal(found[6].params, zo_fl.load(tmp_path).params)
    for round_idx in (5, 6):  # the latest two
        saved = replayed.saved(round_idx, found[round_idx])
        chex.assert_trees_all_equal(found[round_idx], saved)
    with pytest.raises(ConfigError, match="round 2 is of phase warmup, in which clients send more"):
        replayed.state(2)
    with pytest.raises(ConfigError, match="round 7; allowed: 1 to 6"):
        replayed.state(7)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, changes",
    (
        # Statistics travel, and the server has moments.
        ("zo", CNN | {"zo__server": "adam", "data__num_clients": 40, "zo__cohort_size": 2}),
        ("head_zo", {"head_zo__fresh": False}),  # the basis
    ),
)
def test_statistics_moments_and_what_a_head_starts_from_are_rebuilt_too(name, changes, tmp_path):
    summary = api.run(tiny.config(name, **changes), tmp_path, quiet=True)
    replayed = Replay(tmp_path)
    rebuilt = replayed.state(summary["rounds"])
    chex.assert_trees_all_equal(rebuilt, replayed.saved(summary["rounds"], rebuilt))


def entries_of(rounds, seed=0):
    """As of 50 clients with three scalars each."""
    rng, found = np.random.default_rng(seed), []
    for i in range(rounds):
        leaves = (
            np.arange(50, dtype=np.int32),
            np.ones(50, bool),
            rng.normal(size=(50, 1, 3)).astype(np.float32),
            np.full(50, 900, np.float32),
        )
        found.append(ledger.make_entry(201 + i, "zo", leaves, found[-1] if found else None))
    return found


def write(folder, entries):
    data = b"".join(len(e.content).to_bytes(4, "little") + e.content for e in entries)
    (folder / ledger.FILE_NAME).write_bytes(data)
    return data


def test_300_rounds_of_50_clients_with_3_scalars_take_less_than_400_kb(tmp_path):
    entries = entries_of(300)
    assert len(write(tmp_path, entries)) < 400_000
    for entry, same in zip(entries, ledger.read(tmp_path), strict=True):
        assert entry.round == same.round
        for one, other in zip(entry.leaves, same.leaves, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "damage, words",
    (
        (lambda e: [*e[:3], e[3]._replace(content=e[3].content.replace(b"zo", b"zp")), *e[4:]],
         "entry of round 205 does not follow .* round 204 was changed"),
        (lambda e: e[:3] + e[4:], "entry of round 205 does not follow .* is missing"),
        (lambda e: [*e[:3], e[4], e[3], *e[5:]], "entry of round 205 does not follow"),
        (lambda e: e[1:], "entry of round 202 does not follow .* it is not the first one"),
        (lambda e: [*e[:5], e[5]._replace(content=e[5].content[:-40])],
         "the entry after round 205 is damaged"),
    ),
)  # fmt: skip
def test_an_entry_that_was_changed_left_out_or_moved_is_named(damage, words, tmp_path):
    write(tmp_path, damage(entries_of(6)))
    with pytest.raises(ConfigError, match=words) as caught:
        ledger.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_torn_last_entry_is_dropped_in_silence_when_the_run_goes_on(tmp_path):
    whole = write(tmp_path, entries_of(4))
    (tmp_path / ledger.FILE_NAME).write_bytes(whole[:-10])
    writer = ledger.LedgerWriter(tmp_path, resume_after=203)
    assert writer.damage == ""
    writer.write([204], "zo", [leaf[None] for leaf in entries_of(4)[3].leaves])
    assert (tmp_path / ledger.FILE_NAME).read_bytes() == whole


def test_a_run_without_scalars_has_no_ledger(tmp_path):
    with pytest.raises(ConfigError, match=r"has no ledger.msgpack"):
        ledger.read(tmp_path)
