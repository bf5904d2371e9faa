"""Accuracy against what a low-resource client pays: the front, its memory, the command."""

import json

import numpy as np
import pytest

from experiments.reporting import (
    client_memory,
    found,
    report_page,
    tradeoff,
    tradeoff_files,
)
from experiments.reporting.tradeoff import TradeOff
from tests import tiny
from tests.experiments import fake_sweeps
from zo_fl import api as train

POINTS = [
    TradeOff("a, k = 1", [50.0, 52.0], 100, 1e6, 10),
    TradeOff("a, k = 2", [60.0], 1000, 2e6, 10),
    TradeOff("b", [55.0], 2000, None, 5),
    TradeOff("c", [40.0], 0, 0, 0),
]


def test_a_point_is_on_the_front_if_nothing_cheaper_is_as_accurate():
    names = lambda price: [p.name for p in tradeoff.front(POINTS, price)]  # noqa: E731
    assert names("uplink") == ["c", "a, k = 1", "a, k = 2"]
    assert names("memory") == ["c", "a, k = 1", "a, k = 2"]
    assert names("passes") == ["c", "b", "a, k = 2"]
    table = tradeoff.table(POINTS)
    assert [row[1] for row in table.rows] == ["c", "a, k = 1", "a, k = 2", "b"]
    assert table.rows[1][2:5] == ["51.0(1.4)", "2", "100 B*"] and table.rows[3][5] == "–"


def test_what_no_point_knows_has_no_column_and_no_panel_and_points_have_their_numbers():
    unknown = [point._replace(memory=None) for point in POINTS]
    assert tradeoff.table(unknown).headers == ["#", "", "test accuracy, %", "n", "uplink", "passes"]
    panels = tradeoff.draw(unknown, "", False).axes
    assert len(panels) == 2 and len(tradeoff.draw(POINTS, "", False).axes) == 3
    for number, point in tradeoff.numbered(unknown):
        (text,) = [text for text in panels[0].texts if text.get_text() == str(number)]
        at = panels[0].transData.transform((point.uplink, np.mean(point.accuracies)))
        box = text.get_window_extent()
        assert np.hypot((box.x0 + box.x1) / 2 - at[0], (box.y0 + box.y1) / 2 - at[1]) < 30


@pytest.mark.parametrize("with_paper", [False, True])
def test_what_is_written_beside_points_does_not_overlap(with_paper):
    near = [TradeOff(f"a, {i}", [50 + 0.3 * i], 1000 + 20 * i, 1e7, 100) for i in range(6)]
    for points in (near[:1], near):
        figure = tradeoff.draw(points, "", with_paper)
        figure.draw_without_rendering()
        for axes in figure.axes:
            boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
            for i, box in enumerate(boxes):
                assert not any(box.overlaps(other) for other in boxes[:i])


def test_the_first_panel_names_all_points_and_the_others_at_least_their_fronts():
    """Twenty at one price and nearly one accuracy: numbers beside all would say nothing."""
    crowd = [TradeOff(f"a, {i}", [50 + 0.1 * i], 100.0 * 2**i, 1e7, 100) for i in range(19)]
    panels = tradeoff.draw([*crowd, TradeOff("b", [90.0], 1e8, 1e7, 100)], "", False).axes
    first, *others = [{text.get_text() for text in axes.texts} - {""} for axes in panels]
    assert first == {str(number) for number in range(1, 21)}
    assert all("20" in names and len(names) < 20 for names in others)


@pytest.mark.slow
def test_what_is_written_can_be_read_and_is_in_the_report(tmp_path):
    fake_sweeps.make(tmp_path)
    tradeoff_files.write(POINTS, tmp_path / "pareto", True)
    names = sorted(path.suffix for path in (tmp_path / "pareto").iterdir())
    assert names == [".csv", ".json", ".md", ".png", ".svg"]
    content = json.loads((tmp_path / "pareto" / "pareto.json").read_text())
    assert tradeoff.from_json(content) == (POINTS, True) and tradeoff.from_json({}) is None
    page = report_page.of(found.read(tmp_path), tmp_path)
    assert "What a low-resource client pays" in page and "a, k = 2" in page
    (tmp_path / "pareto" / "pareto.json").write_text("{")
    assert "low-resource client pays" not in report_page.of(found.read(tmp_path), tmp_path)


@pytest.mark.slow
def test_prices_are_those_of_a_low_resource_client(tmp_path):
    for name in ("fedavg", "ridge"):
        train.run(tiny.config(name), tmp_path / name, quiet=True)
    both = tiny.config("fedavg+zo")
    train.run(both, tmp_path / "fedavg+zo", warm_start=tmp_path / "fedavg", quiet=True)
    (sweep,) = found.read(tmp_path).sweeps
    memory = client_memory.of(sweep)
    points = {p.name: p for p in tradeoff.points(sweep, memory)}
    high_alone, ridge, zowarmup = (points[name] for name in ("fedavg", "ridge", "fedavg+zo"))
    assert high_alone.uplink == high_alone.passes == high_alone.memory == 0
    assert zowarmup.uplink == tiny.ROUNDS * 3 * 4
    examples = 90  # of each client; two losses a direction
    assert zowarmup.passes == tiny.ROUNDS * 3 * 2 * examples
    # Its sums, one integer a penalty, one loss a temperature; the training set once, and the
    # validation set twice.
    sent = 4 * (64 * 65 // 2) + 2 + 9.5 * (4 * 64 + 4)
    assert ridge.uplink == pytest.approx(sent + 4 * 6 + 4 * 19, rel=0.15)
    assert ridge.passes == examples + 2 * 10
    assert 0 < ridge.memory < 10e6 and np.isfinite(zowarmup.memory)
