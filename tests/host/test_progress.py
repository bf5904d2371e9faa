import io

import pytest
from rich.console import Console

from zo_fl.host.progress import Planned, Progress


class Screen:
    """A console that keeps what it shows, and a clock that is set by hand."""

    def __init__(self, terminal=False):
        self.file = io.StringIO()
        self.console = Console(file=self.file, force_terminal=terminal, width=80, color_system=None)
        self.now = 0.0

    def progress(self, total, done=0, quiet=False, phases=None):
        phases = phases or [Planned("", total)]
        return Progress(phases, done, quiet, self.console, lambda: self.now)

    @property
    def lines(self):
        return self.file.getvalue().splitlines()


def chunk(end, num_rounds=10, phase="warmup", evaluated=True):
    rows = [
        {"round": end - num_rounds + i + 1, "phase": phase, "train_loss": 1.234}
        for i in range(num_rounds)
    ]
    if evaluated:
        rows[-1] |= {"test_accuracy": 0.234, "val_accuracy": 0.25, "test_loss": 2, "val_loss": 2}
    return rows


def test_off_a_terminal_an_evaluation_is_one_plain_line():
    screen = Screen()
    with screen.progress(80, 30) as progress:
        progress.update(chunk(40), images=32_000, seconds=10)
    what = "round 40/80  warmup  loss 1.234  test acc 23.4 %  val acc 25.0 %"
    assert screen.lines == [f"{what}  3,200 images/s  0:40 left"]


def test_off_a_terminal_chunks_without_evaluation_are_silent():
    screen = Screen()
    with screen.progress(80) as progress:
        progress.update(chunk(10, evaluated=False), images=100, seconds=1)
    assert screen.lines == []


def test_time_left_forgets_a_first_chunk_that_compiled():
    screen = Screen()
    with screen.progress(100) as progress:
        for end, now, seconds in ((10, 500, 500), (20, 510, 10), (30, 520, 10)):
            screen.now = now
            progress.update(chunk(end), images=100, seconds=seconds)
    assert screen.lines[-1].endswith("1:10 left")


def test_time_left_and_speed_start_afresh_with_a_phase():
    screen = Screen()
    with screen.progress(100) as progress:
        for end in (10, 20, 30):
            screen.now += 60
            progress.update(chunk(end), images=600, seconds=60)
        screen.now += 200  # compiles, then needs 5 s
        progress.update(chunk(40, phase="zo"), images=500, seconds=5)
    assert screen.lines[-1].endswith("100 images/s  0:30 left")


@pytest.mark.parametrize(
    ("work", "left"),
    [
        ((30, 60), ["  ~1:40 left", "  ~1:20 left", "  4:40 left"]),
        ((30, None), ["  ≥ 0:20 left", "  0 images/s", "  4:40 left"]),
        ((None, 60), ["  ≥ 0:20 left", "  0 images/s", "  4:40 left"]),
    ],
)
def test_time_left_of_later_phases_is_expected_from_their_work_or_only_bounded(work, left):
    screen = Screen()
    phases = [Planned("warmup", 20, work[0]), Planned("zo", 20, work[1])]
    with screen.progress(40, phases=phases) as progress:
        for end in (10, 20):
            screen.now += 20
            progress.update(chunk(end), images=0, seconds=20)
        screen.now += 280
        progress.update(chunk(30, phase="zo"), images=0, seconds=280)
    for line, end in zip(screen.lines, left, strict=True):
        assert line.endswith(end)


def test_a_run_resumed_in_its_last_phase_knows_what_is_left():
    screen = Screen()
    with screen.progress(40, 30, phases=[Planned("warmup", 20), Planned("zo", 20)]) as progress:
        progress.update(chunk(35, 5, phase="zo"), images=0, seconds=10)
    assert screen.lines[-1].endswith("  0:10 left")


def test_compiling_ticks_on_a_terminal_and_the_first_rounds_after_it():
    screen = Screen(terminal=True)
    with screen.progress(80) as progress:
        with progress.compiling("zo"):
            for screen.now in (0, 7, 65):
                progress._live.refresh()
        screen.now += 4
        progress._live.refresh()
    shown = screen.file.getvalue()
    for part in ("compiling zo … 0:00", "compiling zo … 0:07", "compiling zo … 1:05"):
        assert part in shown
    assert "zo: compiled in 65.0 s" in shown and "first rounds of zo … 0:04" in shown


def test_off_a_terminal_compiling_is_one_line_when_it_is_done():
    screen = Screen()
    with screen.progress(80) as progress, progress.compiling("zo"):
        screen.now = 12.3
        assert screen.lines == []
    assert screen.lines == ["zo: compiled in 12.3 s"]


def test_a_compilation_that_fails_does_not_say_that_it_is_done():
    screen = Screen()
    with screen.progress(80) as progress, pytest.raises(ValueError, match="no"):
        with progress.compiling("zo"):
            raise ValueError("no")
    assert screen.lines == []


def test_time_left_counts_evaluation_and_saving():
    screen = Screen()
    with screen.progress(30) as progress:
        for end in (10, 20):
            screen.now += 15
            progress.update(chunk(end), images=100, seconds=5)
    assert screen.lines[-1].endswith("0:15 left")


def test_the_last_line_has_no_time_left():
    screen = Screen()
    with screen.progress(10) as progress:
        progress.update(chunk(10), images=100, seconds=1)
    assert "left" not in screen.lines[-1]


def test_missing_values_do_not_break_a_line():
    screen = Screen()
    rows = [{"round": 1, "phase": "zo", "train_loss": float("nan"), "test_accuracy": 0.1}]
    with screen.progress(10) as progress:
        progress.update(rows, images=0, seconds=0)
    assert screen.lines == ["round  1/10  zo      loss –  test acc 10.0 %  0:00 left"]


def test_a_terminal_shows_phase_rounds_accuracy_loss_speed_and_time_left():
    screen = Screen(terminal=True)
    with screen.progress(80) as progress:
        progress.update(chunk(10), images=32_000, seconds=10)
        progress.update(chunk(20, evaluated=False), images=32_000, seconds=10)
    shown = screen.file.getvalue()
    for part in ("warmup", "20/80", "test 23.4 %", "loss 1.234", "3,200 images/s", "left"):
        assert part in shown


@pytest.mark.parametrize("terminal", [False, True])
def test_messages_are_shown_as_they_are(terminal):
    screen = Screen(terminal)
    with screen.progress(80) as progress:
        progress.message("compiled [bold] in 12.3 s")
    assert "compiled [bold] in 12.3 s" in screen.file.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_shows_nothing(terminal):
    screen = Screen(terminal)
    with screen.progress(80, quiet=True) as progress:
        progress.message("compiled")
        with progress.compiling("zo"):
            pass
        progress.update(chunk(10), images=100, seconds=1)
    assert screen.file.getvalue() == ""
