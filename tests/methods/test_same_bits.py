"""One config, one result: again, and after a resume in another process.

Of methods that differ in what their server keeps, and of a CNN with batch statistics that travel.
"""

import shutil
from pathlib import Path

import chex
import jax
import pytest

import zo_fl
from tests import commands, tiny
from zo_fl import api
from zo_fl.host import curves
from zo_fl.host.metrics import read_metrics

pytestmark = pytest.mark.slow

BATCH_NORM = "zo, CNN with batch statistics"
# A pool of candidates; sums, which are handed over, and their solution.
CASES = ("fedkseed_pro", "ridge_cg", BATCH_NORM)


def config(case, **changes):
    """Returns the config of a case: two rounds a phase, a checkpoint after each."""
    changes |= {"run__rounds_per_jit": 1, "run__checkpoint_every": 1}
    if case != BATCH_NORM:
        return tiny.config(case, **changes)
    few = dict(data__num_clients=40, zo__cohort_size=2)
    return tiny.config(
        "zo", model__name="cnn", model__norm="batch", model__width=0.25, **few, **changes
    )


def run(case, path, **changes):
    """Returns the model that a run ends with, and its rows."""
    api.run(config(case, **changes), path, quiet=True)
    return result(path)


def result(path):
    model = zo_fl.load(path)
    rows = read_metrics(path / "metrics.jsonl")
    return jax.device_get((model.params, model.model_state)), rows


def whole_and_begun(root):
    """Runs every case to its end, and keeps a copy as of its second round.

    That of a process killed then: the round's checkpoint is not written yet.
    """
    curves.draw_curves = lambda rows, path, *_: Path(path).touch()
    for case in CASES:
        path = Path(root) / "whole" / case
        begun = Path(root) / "begun" / case

        def keep(row, path=path, begun=begun):
            if row["round"] == 2:
                shutil.copytree(path, begun, dirs_exist_ok=True)

        api.run(config(case), path, quiet=True, on_round=keep)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of what another process has run."""
    root = tmp_path_factory.mktemp("runs")
    program = (
        "import sys; from tests.methods import test_same_bits; "
        "test_same_bits.whole_and_begun(sys.argv[1])"
    )
    done = commands.run("-c", program, root)
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("case", CASES)
def test_begun_in_another_process_and_resumed_it_is_the_same_to_the_bit(runs, case):
    begun = runs / "begun" / case
    assert not (begun / "summary.json").exists()
    found, rows = run(case, begun)
    expected, rows_of_whole = result(runs / "whole" / case)
    chex.assert_trees_all_equal(found, expected)
    for row, of_whole in zip(rows, rows_of_whole, strict=True):
        assert row | {"seconds": 0} == of_whole | {"seconds": 0}
