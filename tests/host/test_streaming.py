"""Streamed cohorts: what a device is sent, and that results are those of having everything."""

import itertools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests import tiny
from tests.test_run import Killed, killing, rows_of
from zo_fl import api
from zo_fl.data import federated
from zo_fl.engine import cohorts, keys
from zo_fl.engine.fields import ConfigError
from zo_fl.host import streaming

pytestmark = pytest.mark.slow


@pytest.fixture
def uneven(monkeypatch):
    """Makes clients hold 90, 80, 70, ... examples."""
    load = federated.load

    def loaded(**config):
        federation = load(**config)
        sizes = 90 - 10 * np.arange(8, dtype=np.int32)
        indices = federation.clients.client_indices
        indices = np.where(np.arange(90) < sizes[:, None], indices, 0)
        clients = federation.clients._replace(client_indices=indices, client_sizes=sizes)
        return federation._replace(clients=clients)

    monkeypatch.setattr(federated, "load", loaded)


def feed(built, phase, chunks):
    return streaming.stream(
        built.federation.clients, phase.groups, built.engine, built.run_key, chunks
    )


def test_a_streamed_run_that_was_killed_and_resumed_ends_as_one_with_data_on_devices(
    tmp_path, uneven
):
    """Bit for bit; of two devices, so that a cohort of three is padded."""
    fields = dict(zo__num_rounds=5, zo__cohort_size=3, run__num_devices=2)
    fields |= dict(run__eval_every=3, run__checkpoint_every=4)
    api.run(tiny.config("fedavg_all", **fields), tmp_path / "device", quiet=True)
    streamed = tiny.config("fedavg_all", **fields, run__data="stream")
    with pytest.raises(Killed):
        api.run(streamed, tmp_path / "stream", quiet=True, on_round=killing(5))
    api.run(streamed, tmp_path / "stream", quiet=True)
    assert rows_of(tmp_path / "stream") == rows_of(tmp_path / "device")
    built = tiny.build("fedavg_all", **fields)
    like = tiny.start(built, built.phases[0])
    found = [tiny.latest(tmp_path / name, like)[1] for name in ("stream", "device")]
    jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.mark.parametrize("devices", (2, 8))
def test_every_device_holds_what_its_clients_hold_under_other_row_numbers(devices):
    """The clients of both groups, chunks of one shape, with a cohort that is padded."""
    sizes = dict(warmup__cohort_size=2, zo__cohort_size=5)
    built = tiny.build("mixed_tiers", **sizes, run__data="stream", run__num_devices=devices)
    (phase,) = built.phases
    clients, chunks = built.federation.clients, [(0, 2), (2, 3), (3, 5)]
    examples = clients.client_indices.shape[1]
    fed = list(feed(built, phase, chunks))
    assert all(jax.tree.map(np.shape, data) == jax.tree.map(np.shape, fed[0]) for data in fed)
    assert all(leaf.sharding.spec == P("clients") for leaf in jax.tree.leaves(fed[0]))
    for (start, stop), data in zip(chunks, fed, strict=True):
        for round_idx, group in itertools.product(range(start, stop), phase.groups):
            drawn = group.sample_cohort(keys.round_key(built.run_key, round_idx))
            cohort, _ = built.engine.lay_out(group, drawn, examples)
            ids, valid = (np.reshape(leaf, (devices, -1)) for leaf in cohort)
            for device in range(devices):
                part = jax.tree.map(lambda leaf: leaf.addressable_shards[device].data, data)  # noqa: B023
                present = ids[device][valid[device]]
                got = cohorts.gather(jax.device_get(part), present)
                expected = cohorts.gather(clients, present)
                jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_what_a_device_holds_does_not_grow_with_the_population():
    def sizes(num_clients):
        built = tiny.build(
            data__num_clients=num_clients, zo__cohort_size=4, run__data="stream", run__num_devices=2
        )
        data = next(feed(built, built.phases[1], [(2, 3)]))
        per_client = 800 // num_clients * 9 // 10
        return {
            shard.data.shape[0] / per_client for shard in data.examples["image"].addressable_shards
        }

    assert sizes(8) == sizes(40) == {2.0}  # clients' worth of images


def test_nothing_is_sent_again_if_all_clients_take_part(monkeypatch):
    built = tiny.build(run__data="stream", run__num_devices=2)
    data = feed(built, built.phases[1], [(2, 3), (3, 4), (4, 5)])
    first = next(data)
    monkeypatch.setattr(jax, "device_put", None)
    assert all(other is first for other in data)


def test_what_cannot_be_streamed_is_refused_in_one_line(tmp_path):
    # HeteroFL makes its model's statistics of the data.
    overrides = dict(algorithm="heterofl", model__name="cnn", model__norm="batch")
    overrides |= dict(run__data="stream")
    with pytest.raises(ConfigError, match="config.run.data") as caught:
        api.run(tiny.config(**overrides), tmp_path / "run", quiet=True)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()
