import io
import itertools
import math

import numpy as np
import pytest
from rich.console import Console

from zo_fl.host import summary_table, units
from zo_fl.host.costs import Cost
from zo_fl.host.schedule import Schedule, ScheduledPhase
from zo_fl.host.screen import Progress, Stopwatch


def test_each_second_counts_once_for_the_innermost_part():
    ticks = itertools.count()  # a second each time that somebody looks
    clock = Stopwatch(lambda: next(ticks))
    with clock.during("rounds"):
        with clock.during("compiling"):
            pass
        with pytest.raises(KeyError), clock.during("saving"):
            raise KeyError
    with clock.during("rounds"):
        pass
    # Looked at on the way in and out: 8 times, at first, and once more for the sum.
    assert clock.spent() == {"preparing": 3, "rounds": 4, "compiling": 1, "saving": 1}
    assert clock.spent()["preparing"] == 4


class Screen:
    """A console that keeps what it shows, and a clock that is set by hand."""

    def __init__(self, terminal=False):
        self.file = io.StringIO()
        self.console = Console(file=self.file, force_terminal=terminal, width=80, color_system=None)
        self.now = 0.0

    def progress(self, schedule, done=0, quiet=False):
        return Progress(schedule, done, quiet, self.console, lambda: self.now)

    @property
    def lines(self):
        return self.file.getvalue().splitlines()


def schedule_of(*rounds, work=(30.0, 60.0)):
    """Returns a schedule of phases of some rounds, and of the passes that a round of each is."""
    phases, done = [], 0
    for place, (count, passes) in enumerate(zip(rounds, work, strict=False)):
        cost = Cost(forward_passes=passes)
        phases.append(ScheduledPhase(place, None, done, done + count, cost))
        done += count
    return Schedule(tuple(phases))


def chunk(end, num_rounds=10, phase="warmup", evaluated=True):
    first = end - num_rounds + 1
    rows = [{"round": i, "phase": phase, "train_loss": 1.234} for i in range(first, end + 1)]
    if evaluated:
        rows[-1] |= {"test_accuracy": 0.234, "val_accuracy": 0.25, "test_loss": 2, "val_loss": 2}
    return rows


def test_off_a_terminal_an_evaluation_is_one_plain_line():
    shown = Screen()
    with shown.progress(schedule_of(80), done=30) as progress:
        shown.now = 20
        progress.update(chunk(40), images=32_000, seconds=10)
        progress.update(chunk(50, evaluated=False), images=32_000, seconds=10)
    what = "round 40/80  warmup  loss 1.234  test acc 23.4 %  val acc 25.0 %"
    assert shown.lines == [f"{what}  3,200 images/s  1:20 left"]


def test_time_left_counts_later_phases_by_their_work_and_no_compilation():
    shown = Screen()
    with shown.progress(schedule_of(20, 20)) as progress:
        with progress.compiling("warmup"):
            shown.now += 500
        for end, phase in ((10, "warmup"), (20, "zo"), (30, "zo")):
            shown.now += 20  # with evaluation and saving
            progress.update(chunk(end, phase=phase), images=100, seconds=5)
            progress.plan(schedule_of(10, 20))  # it ended early
    ends = ["~1:40 left", " 0:20 left", "images/s"]
    assert shown.lines[0] == "warmup: compiled in 500.0 s"
    for line, end in zip(shown.lines[1:], ends, strict=True):
        assert line.endswith(end)


def test_a_terminal_shows_how_far_it_is_and_what_it_waits_for():
    shown = Screen(terminal=True)
    with shown.progress(schedule_of(20, 20)) as progress:
        with progress.compiling("warmup"):
            progress._live.refresh()
        progress.update(chunk(10), images=32_000, seconds=10)
        progress.message("[bold] stays")
    text = shown.file.getvalue()
    for part in ("compiling", "warmup", "10/40", "23.4 %", "3,200 images/s", "[bold] stays"):
        assert part in text


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_shows_nothing(terminal):
    shown = Screen(terminal)
    with shown.progress(schedule_of(20), quiet=True) as progress:
        progress.message("compiled")
        with progress.compiling("warmup"):
            pass
        progress.update(chunk(10), images=100, seconds=1)
    assert shown.file.getvalue() == ""


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
        (units.num_bytes, 999, "999 B"),
        (units.num_bytes, 999.6, "1.00 kB"),
        (units.num_bytes, 38_400, "38.4 kB"),
        (units.num_bytes, 999_499_999, "999 MB"),
        (units.num_bytes, 999_500_000, "1.00 GB"),
        (units.num_bytes, 2.5e15, "2500 TB"),
        (units.duration, 12.4, "0:12"),
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
