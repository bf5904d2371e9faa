"""One config, one result: again, after a resume in another process, and nearly on other devices.

Relations between runs, of every algorithm and of a CNN with batch statistics that travel.
"""

import functools
import subprocess
import sys
import tempfile
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

import zo_fl
from tests import tiny
from zo_fl import train
from zo_fl.algorithms import ALGORITHMS
from zo_fl.host.metrics import read_metrics

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BATCH_NORM = "zo, CNN with batch statistics"
CASES = (*sorted(ALGORITHMS), BATCH_NORM)
SOLVED = ("ridge", "ridge_cg", "gaussian_head")
# Where clients are laid out otherwise sums are added up in another order.
NEARLY = dict(rtol=1e-5, atol=1e-6)
MAGNIFIED = dict(rtol=1e-4, atol=1e-5)  # by a matrix that is inverted


def config(case, **changes):
    """Returns the config of a case: two rounds a phase, a checkpoint after each."""
    changes |= {"run__rounds_per_jit": 1}
    if case != BATCH_NORM:
        return tiny.config(case, **changes)
    few = dict(data__num_clients=40, zo__cohort_size=2)
    return tiny.config("zo", model__name="cnn", model__norm="batch", **few, **changes)


def run(case, path, **changes):
    """Returns the model that a run ends with, and its rows."""
    train.run(config(case, **changes), path, quiet=True)
    model = zo_fl.load(path)
    rows = read_metrics(path / "metrics.jsonl")
    return jax.device_get((model.params, model.model_state)), rows


@functools.cache
def whole(case):
    """What a run ends with that nobody stops."""
    with tempfile.TemporaryDirectory() as path:
        return run(case, Path(path))


def begin(root):
    """Runs every case until its second round, whose checkpoint is not written any more."""

    def stop(row):
        if row["round"] == 2 or row["phase"] == "patches":  # which has one round only
            raise KeyboardInterrupt

    for case in CASES:
        with pytest.raises(KeyboardInterrupt):
            train.run(config(case), Path(root) / case, quiet=True, on_round=stop)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The folder of every case's run, begun by another process."""
    root = tmp_path_factory.mktemp("begun")
    program = (
        "import sys; from tests import conftest; from tests.algorithms import test_same_bits; "
        "test_same_bits.begin(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", program, root], cwd=ROOT, check=True)
    return root


@pytest.mark.parametrize("case", CASES)
def test_begun_in_another_process_and_resumed_it_is_the_same_to_the_bit(begun, case):
    chex.assert_trees_all_equal(run(case, begun / case)[0], whole(case)[0])


@pytest.mark.parametrize("case", CASES)
def test_on_eight_devices_and_with_several_clients_at_once_it_is_nearly_the_same(case, tmp_path):
    found, rows = run(case, tmp_path, run__num_devices=8, run__clients_per_vmap=3)
    expected, rows_of_one = whole(case)
    chex.assert_trees_all_close(found, expected, **(MAGNIFIED if case in SOLVED else NEARLY))
    losses, of_one = ([row.get("train_loss", 0.0) for row in each] for each in (rows, rows_of_one))
    np.testing.assert_allclose(losses, of_one, rtol=1e-5)
