"""Every second of a run is counted once, for the innermost of what it is spent on."""

import itertools

import pytest

from zo_fl.host.standing import Standing
from zo_fl.host.stopwatch import Stopwatch


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


def test_seconds_that_an_earlier_version_saved_as_one_number_are_kept():
    standing = Standing()
    standing.restore({"seconds": 5.0})
    assert standing.saved["seconds"] == {"rounds": 5.0}
    standing.restore({"seconds": {"saving": 1.0}})
    assert standing.saved["seconds"] == {"saving": 1.0}
