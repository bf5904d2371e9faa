"""Progress of long host-side work: a bar on a terminal, one plain line anywhere else."""

import contextlib
import sys
from collections.abc import Callable, Iterator


def say(message: str) -> None:
    """Prints one line on stderr: stdout stays free for results."""
    print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields ``advance(steps)``, which moves a bar of ``total`` steps on stderr.

    Where stderr is not a terminal (a log file, a CI job) prints ``description`` once instead: a
    redrawn bar would fill the log. ``advance`` may be called from any thread.

    Args:
      description: what is being done, a few words.
      total: steps until done; 0 when unknown.
    """
    if not sys.stderr.isatty():
        say(f"{description} ...")
        yield lambda steps: None
        return
    # rich is imported only where a bar is drawn: a cached data set must load at once.
    from rich import console, progress

    columns = (*progress.Progress.get_default_columns(), progress.TimeElapsedColumn())
    with progress.Progress(*columns, console=console.Console(stderr=True)) as shown:
        task = shown.add_task(description, total=total or None)
        yield lambda steps: shown.advance(task, steps)
