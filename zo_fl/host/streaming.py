"""Training examples that stay on the host: devices get those of their clients, ahead of time.

    host     rows of chunk 2    rows of chunk 3    ...        gathered from a memory-mapped array
    devices  rounds of chunk 1  rounds of chunk 2  ...        two buffers a device, at most

Cohorts follow from keys, so the host knows who takes part before the devices do. Each device gets a
``FederatedData`` of its own: the population's tables, with rows numbered as in *its* examples. All
of them are glued along the leading axis and spread over the mesh, so that ``round`` (by
``Engine.data_spec``) and ``cohorts.gather`` work as ever. A process gathers for its own devices.

A device's memory depends on the cohort, not on the population, except for ``client_indices``: four
bytes for each example that there is.
"""

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from zo_fl.engine import keys
from zo_fl.engine.algorithm import Cohort, Group
from zo_fl.engine.layout import AXIS, Engine
from zo_fl.engine.types import Array, Examples, FederatedData

Chunk = tuple[int, int]  # rounds done before it, and after it


def stream(
    clients: FederatedData,
    groups: Sequence[Group],
    engine: Engine,
    run_key: Array,
    chunks: Sequence[Chunk],
) -> Iterator[FederatedData]:
    """Yields the data of each chunk of rounds, all of the same shapes.

    Take the next one while the devices compute, and nothing waits. Chunks of the same clients, as
    with full participation, share one object.

    Args:
      clients: the federation, NumPy arrays.
      groups: of the phase.
      engine: the layout of clients on the devices.
      run_key: ``key[]`` of the run, on this process.
      chunks: the rounds, in order and without gaps.
    """
    # All rounds at once, and first: a draw between chunks would wait for the devices.
    mesh, examples = engine.mesh, clients.client_indices.shape[1]
    plan = _who_is_where(groups, engine, examples, run_key, chunks)
    sizes = np.asarray(clients.client_sizes)
    capacity = max(1, *(int(sizes[ids].sum()) for chunk in plan for ids in chunk))
    sharding = engine.sharding(P(AXIS))
    devices = list(mesh.devices.flat)
    local = [i for i, d in enumerate(devices) if d.process_index == jax.process_index()]

    def spread(*shards: np.ndarray) -> Array:
        """Returns one array of the shards of this process's devices, and of all the others'."""
        shape = (mesh.size * shards[0].shape[0], *shards[0].shape[1:])
        placed = [jax.device_put(s, devices[i]) for i, s in zip(local, shards, strict=True)]
        return jax.make_array_from_single_device_arrays(shape, sharding, placed)

    constant = [spread(*[np.asarray(a)] * len(local)) for a in (sizes, clients.client_tiers)]
    here, data = [], None
    for chunk in plan:
        before, here = here, [chunk[i] for i in local]
        if data is None or not all(map(np.array_equal, before, here)):
            shards = [_share(clients, ids, capacity) for ids in here]
            data = FederatedData(*jax.tree.map(spread, *shards), *constant)
        yield data


def _who_is_where(
    groups: Sequence[Group],
    engine: Engine,
    examples: int,
    run_key: Array,
    chunks: Sequence[Chunk],
) -> list[list[np.ndarray]]:
    """Returns, for each chunk and each device, the sorted ids of the clients that it evaluates."""
    first, num_devices = chunks[0][0], engine.mesh.size

    @jax.jit
    def draw(run_key, rounds) -> list[Cohort]:
        def of_round(round_idx):
            round_key = keys.round_key(run_key, round_idx)
            drawn = [(group, group.sample_cohort(round_key)) for group in groups]
            return [engine.lay_out(*each, examples)[0] for each in drawn]

        return jax.lax.map(of_round, rounds)

    cohorts = jax.device_get(draw(run_key, np.arange(first, chunks[-1][1], dtype=np.int32)))
    # As shard_map cuts a cohort, a block for each device: [rounds, devices, clients].
    blocks = [
        jax.tree.map(lambda leaf: leaf.reshape(len(leaf), num_devices, -1), cohort)
        for cohort in cohorts
    ]

    def present(start: int, stop: int, device: int) -> np.ndarray:
        part = np.s_[start - first : stop - first, device]
        return np.unique(np.concatenate([b.client_ids[part][b.valid[part]] for b in blocks]))

    return [[present(*chunk, device) for device in range(num_devices)] for chunk in chunks]


def _share(clients: FederatedData, ids: np.ndarray, capacity: int) -> tuple[Examples, np.ndarray]:
    """Returns ``(examples, client_indices)`` for one device, of the clients ``ids`` (``i32[C]``).

    The examples are ``capacity`` rows, the last ones zeros.
    """
    table = np.asarray(clients.client_indices)
    held = np.arange(table.shape[1]) < np.asarray(clients.client_sizes)[ids, None]
    rows = table[ids][held]

    def take(array) -> np.ndarray:
        taken = np.zeros((capacity, *array.shape[1:]), array.dtype)
        # "clip" writes straight to ``out``; the default mode makes a copy first.
        np.take(array, rows, axis=0, out=taken[: len(rows)], mode="clip")
        return taken

    # Clients that are elsewhere, and padding, point to row 0 and are masked.
    numbered = np.zeros(held.shape, table.dtype)
    numbered[held] = np.arange(len(rows))
    indices = np.zeros_like(table)
    indices[ids] = numbered
    return jax.tree.map(take, clients.examples), indices
