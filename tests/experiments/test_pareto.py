"""Accuracy against the prices of a low-resource client: the front, its memory, the files."""

import itertools
import json
from pathlib import Path

import pytest

from experiments.analysis import found, tradeoff
from experiments.analysis.tradeoff import TradeOff
from experiments.inspection import client_step
from tests import tiny
from zo_fl import api

ROOT = Path(__file__).parents[2]
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
    assert [row[0] for row in table.rows] == ["c", "a, k = 1", "a, k = 2", "b"]
    assert table.rows[1][:3] == ["a, k = 1", "51.0(1.4)", "100 B*"] and table.rows[3][3] == "–"


def test_a_point_has_the_rest_of_its_name_in_the_colour_of_its_family_and_names_never_meet():
    content = json.loads((ROOT / "experiments" / "results" / "forward_only.json").read_text())
    points, with_paper = tradeoff.from_json(content)
    figure = tradeoff.draw(points, with_paper)
    figure.canvas.draw()
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
        assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
        assert all(axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max) for box in boxes)
    names = [text.get_text() for text in figure.axes[0].texts if text.get_text()]
    assert len(names) == len(points) + len(tradeoff.PAPER)
    assert {"6,656 features, 8 steps", "64 directions, int4", "ZOWarmUp"} <= set(names)
    families = {text.get_text() for legend in figure.legends for text in legend.get_texts()}
    assert families >= {"Class means", "Conjugate gradients, float16", "Ridge", "High tier alone"}
    assert tradeoff._names([*POINTS, POINTS[0]._replace(name="a")])[-2:] == [("c", ""), ("a", "a")]


@pytest.mark.slow
def test_prices_are_those_of_a_low_resource_client(tmp_path):
    api.run(tiny.config("fedavg"), tmp_path / "fedavg", quiet=True)
    both = tiny.config("fedavg+zo")
    api.run(both, tmp_path / "fedavg+zo", warm_start=tmp_path / "fedavg", quiet=True)
    (sweep,) = found.read(tmp_path).sweeps
    points = {p.name: p for p in tradeoff.points(sweep, client_step.memory_of_run)}
    high_alone, zowarmup = points["fedavg"], points["fedavg+zo"]
    assert high_alone.uplink == high_alone.passes == high_alone.memory == 0
    assert zowarmup.uplink == tiny.ROUNDS * 3 * 4
    examples = 90  # of each client; two losses a direction
    assert zowarmup.passes == tiny.ROUNDS * 3 * 2 * examples
    assert 0 < zowarmup.memory < 10e6
