"""How a cohort is laid out on devices: chunks and padding."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tiny
from zo_fl.engine.algorithm import Client, Cohort, Group
from zo_fl.engine.layout import EXAMPLES_AT_ONCE, Engine
from zo_fl.host.devices import make_mesh

OWN_WEIGHTS = Client(update=lambda state, batch, keys: None)
ONE_MODEL = OWN_WEIGHTS._replace(one_model=True)


@settings(max_examples=12, deadline=None)
@given(
    cohort_size=st.sampled_from([1, 2, 7, 8, 40]),
    devices=st.sampled_from([1, 2, 4, 8]),
    clients_per_vmap=st.integers(0, 9),
    examples=st.sampled_from([1, 100, 300, 5000]),
    client=st.sampled_from([OWN_WEIGHTS, ONE_MODEL]),
)
def test_every_device_gets_whole_chunks_and_every_client_a_place(
    cohort_size, devices, clients_per_vmap, examples, client
):
    layout = Engine(make_mesh(devices), clients_per_vmap)
    ids = jnp.arange(cohort_size, dtype=jnp.int32) + 3
    group = Group(client, lambda key: None, cohort_size, 0.0, np.arange(cohort_size))
    padded, loop = layout.lay_out(group, Cohort(ids, jnp.ones(cohort_size, bool)), examples)
    size = loop.chunk_size
    assert padded.client_ids.shape[0] % (devices * size) == 0
    assert padded.client_ids.shape[0] - cohort_size < devices * size
    np.testing.assert_array_equal(padded.client_ids[:cohort_size], ids)
    np.testing.assert_array_equal(padded.valid, np.arange(len(padded.valid)) < cohort_size)
    assert 1 <= size <= -(-cohort_size // devices)
    if not clients_per_vmap:
        assert size == 1 or (client.one_model and size * examples <= EXAMPLES_AT_ONCE)


def test_clients_share_all_weights_until_they_take_steps_of_their_own():
    for steps in (1, 2):
        (phase,) = tiny.build("zo", zo__seed_policy="shared", zo__local_steps=steps).phases
        assert tiny.only_client(phase).one_model == (steps == 1)
