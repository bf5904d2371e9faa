"""The notebook, run to its end on the CPU at a tiny size."""

import re
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "experiments" / "colab.ipynb"
TINY = {
    "algorithm": "fedavg",
    "model.name": "mlp",
    "model.norm": "none",
    "data.num_clients": 10,
    "warmup.num_rounds": 1,
    "run.num_devices": 1,
}


def read():
    return nbformat.read(NOTEBOOK, as_version=4)


def cell(notebook, name):
    (found,) = [one for one in notebook.cells if one.id == name]
    return found


def test_the_notebook_is_valid_has_ids_and_holds_no_outputs():
    notebook = read()
    nbformat.validate(notebook)
    assert len({one.id for one in notebook.cells}) == len(notebook.cells)
    assert not [one.id for one in notebook.cells if one.get("outputs")]
    assert "full = False" in cell(notebook, "parameters").source
    (found,) = re.findall(r'"zo_fl", "(\w+\.py)"', cell(notebook, "install").source)
    assert (ROOT / "zo_fl" / found).exists(), "by which the notebook knows the repository"


@pytest.mark.nightly
@pytest.mark.slow
# Of zmq and asyncio, in the client of the kernel.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_notebook_runs_to_its_end(tmp_path, monkeypatch):
    notebook = read()
    cell(notebook, "install").source = ""  # no network
    cell(notebook, "parameters").source = f"changes, full = {TINY!r}, False"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=where).execute()
    shown = cell(notebook, "quickstart").outputs[-1]["data"]["text/plain"]
    assert "'rounds': 1" in shown
    assert "image/png" in cell(notebook, "curves").outputs[-1]["data"]
    accuracy = cell(notebook, "own-data").outputs[-1]["data"]["text/plain"]
    assert 0 <= float(accuracy) <= 1
