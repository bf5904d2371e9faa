"""Pictures of whole and half sweeps are made, and tell the truth."""

import json
import math

import pytest

from experiments.analysis import comparison, figures
from tests.experiments import fake_sweeps
from tests.experiments.fake_sweeps import only

KINDS = {
    "splits": {"columns": ("10/90", "50/50")},
    "methods": {"rows": ("High Res Only", "ZOWarmUp", *(f"$cheap$ {i} %" for i in range(6)))},
    "direction": {"rows": ("Gaussian", "Other"), "columns": ("tau 0.1", "tau 0.25")},
    "num_directions": {"rows": ("ZOWarmUp",), "columns": ("S = 1", "S = 3")},
    "faults": {"columns": ("0 %", "silent 10 %", "liars 10 %"), "axis": "share of the clients, %"},
}
TABLES = {"direction": "Figure 6", "num_directions": "Figure 7"}
PANELS = {"splits": 2, "methods": 8, "direction": 2, "num_directions": 1, "faults": 3}


def texts(figure):
    figure.draw_without_rendering()
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_sweep_is_drawn_whole_or_of_one_run(tmp_path, name):
    reference = "High Res Only" if name in ("splits", "methods") else ""
    made = KINDS[name] | {"reference": reference, "table": TABLES.get(name, "Table 2")}
    folders = fake_sweeps.make(tmp_path, seeds=(0, 1), **made)
    drawn = figures.of(only(tmp_path))
    assert list(drawn) == ["s", "s-curves"]
    assert sum(axes.get_visible() for axes in drawn["s-curves"].axes) == PANELS[name]
    for folder in list(folders.values())[1:]:
        (folder / "summary.json").unlink()
    for figure in (*drawn.values(), *figures.of(only(tmp_path)).values()):
        figure.draw_without_rendering()


def test_figures_are_written_as_png_and_svg(tmp_path):
    fake_sweeps.make(tmp_path, seeds=(0,))
    written = figures.write(only(tmp_path), tmp_path / "plots")
    assert [path.name for path in written] == ["s.png", "s-curves.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    assert all("</svg>" in path.with_suffix(".svg").read_text() for path in written)


def test_half_a_sweep_is_drawn_and_an_empty_one_is_not(tmp_path):
    folders = fake_sweeps.make(tmp_path, columns=("10/90", "50/50"), seeds=(0,))
    for (row, column, _), folder in folders.items():
        if row == "ZOWarmUp" or column == "50/50":
            (folder / "summary.json").unlink()
        (folder / "metrics.jsonl").unlink()
    assert texts(figures.of(only(tmp_path))["s"]).count("missing") == 3
    path = folders["High Res Only", "10/90", 0] / "summary.json"
    fake_sweeps.write(path, json.loads(path.read_text()) | {"diverged_round": 3})
    assert texts(figures.of(only(tmp_path))["s"]).count("nc") == 1
    path.unlink()
    assert figures.of(only(tmp_path)) == {}


def test_a_curve_is_of_all_seeds_and_its_pivot_the_end_of_the_first_phase(tmp_path):
    fake_sweeps.make(tmp_path, rows=("ZOWarmUp",), seeds=(0, 1), reference="")
    axes = figures.of(only(tmp_path))["s-curves"].axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["10/90"].get_xdata().tolist() == [1, 2, 3, 4]
    ends = [fake_sweeps.accuracy("ZOWarmUp", "10/90", seed) for seed in (0, 1)]
    assert math.isclose(lines["10/90"].get_ydata()[-1], 50 * sum(ends))
    assert lines["pivot"].get_xdata()[0] == 2


def test_the_interval_of_a_variance_is_chi_squared():
    """Of 1, 2, 3: variance 1; chi^2 of 2 degrees at 2.5 and 97.5 %: 0.050636 and 7.377759."""
    cell = comparison.Cell("r", "c", {0: 1.0, 1: 2.0, 2: 3.0}, [], 0, 0, 3, None, (), None)
    low, variance, high = figures.variance_interval(cell)
    assert math.isclose(variance, 1.0)
    assert math.isclose(low, 2 / 7.377759, rel_tol=1e-5)
    assert math.isclose(high, 2 / 0.0506356, rel_tol=1e-5)


def test_the_paper_is_marked_for_its_own_setting_only(tmp_path):
    for name, expected in (("cifar10", True), ("cifar10_sample", False)):
        root = tmp_path / name
        fake_sweeps.make(root, config=fake_sweeps.PAPER | {"data.name": name})
        for figure in figures.of(only(root)).values():
            labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
            assert any("the paper" in label for label in labels) == expected
