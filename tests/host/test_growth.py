"""What a long run holds: as much after eighty rounds as after forty."""

import resource
import sys
from pathlib import Path

import jax
import pytest

import zo_fl
from tests import tiny
from zo_fl.models.small import MLP

pytestmark = pytest.mark.slow

SETTLED, ROUNDS = 40, 80  # of each phase
# Measured: up to 5 MB in 40 rounds. A model kept from each of them would be 33 MB.
ALLOWED = 16e6


def resident_bytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_rounds(tmp_path):
    config = tiny.config(
        data__num_clients=20,
        warmup__num_rounds=ROUNDS,
        zo__num_rounds=ROUNDS,
        run__rounds_per_jit=1,
        run__eval_every=10,
        run__checkpoint_every=10,
    )
    seen = {}

    def observe(row):
        seen[row["round"]] = resident_bytes(), len(jax.live_arrays())

    model = MLP(num_classes=10, hidden_size=1024)
    zo_fl.run(config, tmp_path / "run", model=model, on_round=observe)
    for pivot in (0, ROUNDS):
        settled, end = seen[pivot + SETTLED], seen[pivot + ROUNDS]
        assert end[0] - settled[0] < ALLOWED
        assert end[1] <= settled[1]
