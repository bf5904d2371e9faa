"""Pictures of sweeps are made, from whole sweeps and from half of one, and tell the truth."""

import itertools
import json
import math

import numpy as np
import pytest
from PIL import Image

from experiments.reporting import comparison, figure_style, figures, found, picture_files
from tests import commands
from tests.experiments import fake_sweeps

PIVOTS = ("1 of 4", "2 of 4", "3 of 4")
TAUS = ("tau 0.1", "tau 0.25")
DIRECTIONS = ("S = 1", "S = 3")
KINDS = {
    "splits": {"columns": ("10/90", "50/50")},
    "methods": {"rows": ("High Res Only", "ZOWarmUp", *(f"$cheap$ {i} %" for i in range(8)))},
    "pivot": {"rows": ("10/90",), "columns": PIVOTS, "table": "Figure 4"},
    "direction": {"rows": ("Gaussian", "Other"), "columns": TAUS, "table": "Figure 6"},
    "num_directions": {"rows": ("ZOWarmUp",), "columns": DIRECTIONS, "table": "Figure 7"},
    "timed": {"table": "", "quantity": "seconds"},
    "faults": {"columns": ("0 %", "silent 10 %", "liars 10 %"), "axis": "share of the clients, %"},
}
PANELS = {"splits": 2, "methods": 10, "pivot": 1, "direction": 2, "num_directions": 1, "timed": 1}
PANELS |= {"faults": 3}


def only(root):
    return found.read(root).sweeps[0]


def texts(figure):
    figure.canvas.draw()
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "splits" else pytest.mark.slow) for name in KINDS],
)
def test_every_kind_of_sweep_is_drawn_as_png_and_svg(tmp_path, name):
    without = {} if name in ("splits", "methods") else {"reference": ""}
    fake_sweeps.make(tmp_path, name=name, seeds=(0, 1), **KINDS[name], **without)
    curves = figures.of(only(tmp_path))[f"{name}-curves"]
    assert sum(axes.get_visible() for axes in curves.axes) == PANELS[name]
    written = picture_files.write(only(tmp_path), tmp_path / "plots")
    assert [path.stem for path in written] == [name, f"{name}-curves"]
    for path in written:
        picture = np.asarray(Image.open(path).convert("L"))
        assert picture.shape[1] >= 600 and picture.min() < 100
        assert "</svg>" in path.with_suffix(".svg").read_text()


@pytest.mark.parametrize(
    ("columns", "scale"),
    ((("0 %", "NaN 1 %", "NaN 30 %"), "linear"), (("none", "e 0.5", "e 16"), "log")),
)
def test_an_axis_is_logarithmic_where_numbers_are_far_apart_and_none_is_zero(
    tmp_path, columns, scale
):
    fake_sweeps.make(tmp_path, columns=columns, axis="share", table="", reference="")
    (axes,) = figures.of(only(tmp_path))["s"].axes
    assert axes.get_xscale() == scale
    drawn = {float(x) for line in axes.lines for x in line.get_xdata() if scale == "linear"}
    assert not drawn or {0.0, 1.0, 30.0} <= drawn


def test_half_a_sweep_is_drawn_and_an_empty_one_is_not(tmp_path):
    folders = fake_sweeps.make(tmp_path, columns=("10/90", "50/50"), seeds=(0,))
    for (row, column, _), folder in folders.items():
        if row == "ZOWarmUp" or column == "50/50":
            (folder / "summary.json").unlink()
        (folder / "metrics.jsonl").unlink()
    drawn = figures.of(only(tmp_path))
    assert texts(drawn["s"]).count("missing") == 3
    (folders["High Res Only", "10/90", 0] / "summary.json").unlink()
    assert figures.of(only(tmp_path)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("table", ("Figure 4", "Figure 6", "Figure 7"))
def test_a_figure_of_one_finished_run_is_drawn(tmp_path, table):
    folders = fake_sweeps.make(
        tmp_path, rows=("ZOWarmUp",), columns=("S = 1", "S = 3"), table=table, reference=""
    )
    for (_, column, seed), folder in folders.items():
        if (column, seed) != ("S = 1", 0):
            (folder / "summary.json").unlink()
    assert picture_files.write(only(tmp_path), tmp_path / "plots")


def test_a_method_that_did_not_converge_says_so(tmp_path):
    folders = fake_sweeps.make(tmp_path)
    for (row, _, _), folder in folders.items():
        if row == "ZOWarmUp":
            path = folder / "summary.json"
            fake_sweeps.write(path, json.loads(path.read_text()) | {"diverged_round": 3})
    assert texts(figures.of(only(tmp_path))["s"]) == ["nc"]


def test_chance_is_a_line_where_a_run_is_at_chance(tmp_path):
    fake_sweeps.make(tmp_path / "a", accuracy=lambda row, *_: 0.1 if row == "ZOWarmUp" else 0.5)
    fake_sweeps.make(tmp_path / "b")
    for name, expected in {"a": [10.0], "b": []}.items():
        axes = figures.of(only(tmp_path / name))["s"].axes[0]
        assert [line.get_xdata()[0] for line in axes.lines if line.get_label() == "chance"] == (
            expected
        )


def test_a_curve_is_of_all_seeds_and_its_pivot_the_end_of_the_first_phase(tmp_path):
    fake_sweeps.make(tmp_path, rows=("ZOWarmUp",), seeds=(0, 1), reference="")
    axes = figures.of(only(tmp_path))["s-curves"].axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["10/90"].get_xdata().tolist() == [1, 2, 3, 4]
    ends = [fake_sweeps.accuracy("ZOWarmUp", "10/90", seed) for seed in (0, 1)]
    assert math.isclose(lines["10/90"].get_ydata()[-1], 50 * sum(ends))
    assert lines["pivot"].get_xdata()[0] == 2


def test_a_figure_says_its_title_unless_a_heading_does(tmp_path):
    fake_sweeps.make(tmp_path)
    for titled in (True, False):
        for figure in figures.of(only(tmp_path), titled).values():
            assert ("A title" in figure.get_suptitle()) == titled


@pytest.mark.slow
def test_titles_of_many_panels_stay_apart(tmp_path):
    rows = ("High Res Only", *(f"Another method, of number {i}" for i in range(9)))
    fake_sweeps.make(tmp_path, rows=rows, seeds=(0,))
    figure = figures.of(only(tmp_path))["s-curves"]
    figure.canvas.draw()
    boxes = [axes.title.get_window_extent() for axes in figure.axes if axes.get_visible()]
    assert len(boxes) == 10 and all(box.x1 < figure.bbox.x1 for box in boxes)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_a_curve_of_one_evaluation_is_a_dot(tmp_path):
    folders = fake_sweeps.make(tmp_path, seeds=(0,))
    path = folders["High Res Only", "10/90", 0] / "metrics.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[-1])
    axes = figures.of(only(tmp_path))["s-curves"].axes[0]
    markers = {line.get_label(): line.get_marker() for line in axes.lines}
    assert (markers["High Res Only"], markers["ZOWarmUp"]) == ("o", "None")


def test_rows_that_come_again_take_no_colour():
    names = ["ZOWarmUp", *"aaabbbbcdd"]
    assert len(set(figure_style.colours(names).values())) == len(set(names))


def test_methods_are_sorted_by_their_mean_the_best_on_top(tmp_path):
    values = {"High Res Only": 0.3, "good": 0.6, "bad": 0.2}
    fake_sweeps.make(tmp_path, rows=tuple(values), accuracy=lambda row, *_: values[row])
    axes = figures.of(only(tmp_path))["s"].axes[0]
    heights = {label.get_text(): y for label, y in zip(axes.get_yticklabels(), axes.get_yticks())}  # noqa: B905
    assert sorted(heights, key=heights.__getitem__) == ["good", "High Res Only", "bad"]
    assert axes.yaxis_inverted()


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


@pytest.mark.slow
def test_drawing_leaves_pyplot_alone(tmp_path):
    import matplotlib.pyplot as plt

    before = plt.get_fignums(), plt.get_backend()
    fake_sweeps.make(tmp_path)
    picture_files.write(only(tmp_path), tmp_path / "plots")
    assert (plt.get_fignums(), plt.get_backend()) == before


@pytest.mark.slow
def test_the_command_writes_pictures_and_names_what_is_missing(tmp_path):
    folders = fake_sweeps.make(tmp_path)
    (folders["ZOWarmUp", "10/90", 0] / "summary.json").unlink()
    got = commands.run("-m", "experiments.plots", f"--runs={tmp_path}")
    assert got.returncode == 0, got.stderr
    assert "1 of 6 runs missing" in got.stdout
    assert (tmp_path / "plots" / "s.svg").exists()
