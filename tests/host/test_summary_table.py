"""The table at the end of a run, and of several; numbers as people read them."""

import math

import numpy as np
import pytest

from zo_fl.host import summary_table, units

SUMMARY = {
    "pivot_accuracy": 0.234,
    "final_accuracy": 0.33,
    "best_val_accuracy": 0.35,
    "delta_lo": 0.096,
    "uplink_bytes": 44_700_000,
    "downlink_bytes": 1_340_000_000,
    "forward_passes": 1_234_567,
    "wall_seconds": 4021.2,
    "seconds": {"compiling": 21.0, "rounds": 4000.2},
    "workdir": "runs/quickstart",
    "diverged_round": None,
}


def test_the_closing_table_leaves_out_missing_entries():
    for name in SUMMARY:
        rest = {key: value for key, value in SUMMARY.items() if key != name}
        assert summary_table.of_run(SUMMARY | {name: None}) == summary_table.of_run(rest)
    assert "+9.6 points" in summary_table.of_run(SUMMARY)
    summary_table.of_run({})


def test_the_closing_table_fits_80_columns_and_loses_nothing():
    path = "/home/someone/" + "experiments-of-a-long-name/" * 8
    table = summary_table.of_run(SUMMARY | {"workdir": path})
    assert max(map(len, table.splitlines())) <= summary_table.WIDTH
    assert path in "".join(line.strip() for line in table.splitlines())


def test_several_runs_are_a_line_each_and_their_mean():
    other = SUMMARY | {"final_accuracy": 0.35, "pivot_accuracy": None, "diverged_round": 7}
    table = summary_table.of_runs({"0": SUMMARY, "1": other}, "runs", mean=True).splitlines()
    assert table[0].startswith(" 0     pivot 23.4 %, test 33.0 %")
    assert "test 35.0 %" in table[1] and table[1].endswith("diverged in round 7")
    assert "test 34.0(1.4) %" in table[2] and table[3] == " results in runs"


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (units.num_bytes, 0, "0 B"),
        (units.num_bytes, 999.6, "1.00 kB"),
        (units.num_bytes, 38_400, "38.4 kB"),
        (units.num_bytes, 999_500_000, "1.00 GB"),
        (units.num_bytes, 2.5e15, "2500 TB"),
        (units.duration, 59.6, "1:00"),
        (units.duration, 4021, "1:07:01"),
        (units.duration, -1, "0:00"),
        (units.percent, 0.2344, "23.4 %"),
        (units.points, -0.01, "-1.0 points"),
        (units.integer, 1_234_567.2, "1,234,567"),
        (units.loss, 1.23449, "1.234"),
        (units.loss, -1.5e300, "-1.5e+300"),
    ],
)
def test_numbers_are_shown_in_human_units_and_missing_ones_as_a_dash(show, value, text):
    assert show(value) == text
    assert {show(None), show(math.nan), show(math.inf)} == {units.NONE}


def test_a_number_is_finite_and_neither_text_nor_missing():
    assert all(map(units.is_number, (0, 1.5, np.float32(2), np.int64(3))))
    assert not any(map(units.is_number, (None, "1", math.nan, -math.inf, [1], {})))
