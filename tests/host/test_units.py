import math

import numpy as np
import pytest

from zo_fl.host import units


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (12, "12 B"),
        (999, "999 B"),
        (999.6, "1.00 kB"),
        (38_400, "38.4 kB"),
        (44_696_000, "44.7 MB"),
        (999_499_999, "999 MB"),
        (999_500_000, "1.00 GB"),
        (805e9, "805 GB"),
        (2.5e15, "2500 TB"),
    ],
)
def test_bytes_have_three_digits_and_a_decimal_unit(count, text):
    assert units.num_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (12.4, "0:12"), (59.6, "1:00"), (3599, "59:59"), (4021, "1:07:01"), (-1, "0:00")],
)
def test_durations_are_hours_minutes_seconds(seconds, text):
    assert units.duration(seconds) == text


def test_fractions_become_percent_and_differences_points():
    assert units.percent(0.2344) == "23.4 %"
    assert units.percent(1) == "100.0 %"
    assert units.points(0.093) == "+9.3 points"
    assert units.points(-0.01) == "-1.0 points"


def test_counts_have_thousands_separated():
    assert units.integer(1_234_567.2) == "1,234,567"


def test_losses_keep_to_nine_characters():
    assert units.loss(1.23449) == "1.234"
    assert len(units.loss(-1.5e300)) <= 9


@pytest.mark.parametrize(
    "show",
    [units.num_bytes, units.duration, units.percent, units.points, units.integer, units.loss],
)
def test_missing_and_non_finite_numbers_are_a_dash(show):
    assert {show(None), show(math.nan), show(math.inf)} == {units.NONE}


def test_a_number_is_finite_and_neither_text_nor_missing():
    assert all(map(units.is_number, (0, 1.5, np.float32(2), np.int64(3))))
    assert not any(map(units.is_number, (None, "1", math.nan, -math.inf, [1], {})))
