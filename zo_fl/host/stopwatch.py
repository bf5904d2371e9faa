"""Where a run's time goes."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PREPARING = "preparing"


class Stopwatch:
    """Seconds from now on, each counted for one thing: what is done at that moment.

    Args:
      clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock, self._since, self._now = clock, clock(), PREPARING
        self._spent: dict[str, float] = defaultdict(float)

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """What happens within counts for ``part``, and no longer for what is around it."""
        around = self._go_on_with(part)
        try:
            yield
        finally:
            self._go_on_with(around)

    def spent(self) -> dict[str, float]:
        """Returns the seconds of each part until now; all that nobody claimed is ``PREPARING``."""
        self._go_on_with(self._now)
        return dict(self._spent)

    def _go_on_with(self, part: str) -> str:
        now, before = self._clock(), self._now
        self._spent[before] += now - self._since
        self._since, self._now = now, part
        return before
