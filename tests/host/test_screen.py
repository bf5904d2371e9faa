import io
import itertools

import numpy as np
import pytest
from rich.console import Console

from zo_fl.engine.algorithm import Group, Phase
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
        group = Group(None, None, 1, forward_passes=passes, eligible=np.arange(1))
        phase = Phase("", count, (group,), None)
        phases.append(ScheduledPhase(place, phase, done, done + count, bill=None))
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


def test_the_first_round_of_a_phase_is_a_line_if_it_has_anything_to_say():
    shown = Screen()
    with shown.progress(schedule_of(20, 20)) as progress:
        for end, count in ((1, 1), (9, 8)):
            progress.update(chunk(end, count, evaluated=False), images=100, seconds=1)
        progress.update([{"round": 21, "phase": "sums"}], images=100, seconds=1)
    (line,) = shown.lines
    assert line.startswith("round  1/40  warmup  loss 1.234")


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
            progress._bar.refresh()
        progress.update(chunk(10), images=32_000, seconds=10)
        progress.message("[bold] stays")
    text = shown.file.getvalue()
    for part in ("compiling", "warmup", "10/40", "23.4 %", "3,200 images/s", "[bold] stays"):
        assert part in text


def test_quiet_shows_nothing():
    shown = Screen(terminal=True)
    with shown.progress(schedule_of(20), quiet=True) as progress:
        progress.message("compiled")
        with progress.compiling("warmup"):
            pass
        progress.update(chunk(10), images=100, seconds=1)
    assert shown.file.getvalue() == ""
