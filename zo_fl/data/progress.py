"""Progress of long work on the host: a bar on a terminal, one plain line anywhere else."""

import contextlib
import sys
from collections.abc import Callable, Iterator


def say(message: str) -> None:
    """Prints one line on stderr; stdout is for results."""
    print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields ``advance(steps)``, which moves a bar on stderr and may be called from any thread.

    Args:
      description: a few words about the work.
      total: number of steps; 0 if it is unknown.
    """
    if not sys.stderr.isatty():  # a log file would fill with redrawn bars
        say(f"{description} ...")
        yield lambda steps: None
        return
    from rich import console, progress  # slow to import, and a cached data set needs no bar

    columns = (*progress.Progress.get_default_columns(), progress.TimeElapsedColumn())
    with progress.Progress(*columns, console=console.Console(stderr=True)) as shown:
        task = shown.add_task(description, total=total or None)
        yield lambda steps: shown.advance(task, steps)
