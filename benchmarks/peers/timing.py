"""Times rounds and prints the figures of a peer as one JSON object.

Needs the standard library only; for peers that start other processes, psutil.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import sys
import threading
import time
from collections.abc import Callable

from .workloads import WORKLOADS


def parser(
    description: str | None, workloads: list[str], devices: bool = False
) -> argparse.ArgumentParser:
    """Returns a parser of the flags that every peer has.

    Args:
      description: the script's docstring.
      workloads: those the peer can do; the first is the default.
      devices: True for a flag ``--device``.
    """
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--workload", choices=workloads, default=workloads[0])
    result.add_argument("--rounds", type=int, default=3, help="timed, after one that is not")
    result.add_argument("--threads", type=int, default=os.cpu_count())
    result.add_argument("--json", default="-", metavar="FILE", help="- is the standard output")
    if devices:
        result.add_argument("--device", default="cpu", help="cpu or cuda")
    return result


def limit_cores(threads: int) -> None:
    """Lets this process use ``threads`` cores. Before JAX starts its threads; Linux only."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def time_calls(function: Callable[[int], None], calls: int, warm_up: bool = True) -> list[float]:
    """Returns the seconds of ``function(1)``, ``function(2)``, ...

    Args:
      function: waits for its results.
      calls: how many.
      warm_up: whether ``function(0)`` is called before and not timed.
    """
    if warm_up:
        function(0)
    seconds = []
    for index in range(1, calls + 1):
        start = time.perf_counter()
        function(index)
        seconds.append(time.perf_counter() - start)
    return seconds


def peak_memory() -> int:
    """Returns the most bytes that this process has had in memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class TreeMemory:
    """Samples the memory of this process and all it started, while in its ``with`` block.

    A page that several processes share counts once, where the system tells (Linux).

    Attributes:
      peak: the largest sample in bytes.
    """

    def __init__(self, interval: float = 0.5):
        import psutil

        self.peak = 0
        self._process, self._ended = psutil.Process(), psutil.Error
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _sample(self):
        while not self._stop.wait(self._interval):
            total = 0
            for process in (self._process, *self._process.children(recursive=True)):
                try:
                    memory = process.memory_full_info()
                    total += getattr(memory, "pss", memory.rss)
                except self._ended:
                    continue
            self.peak = max(self.peak, total)


def report(
    arguments: argparse.Namespace,
    peer: str,
    packages: list[str],
    seconds: list[float],
    forward_seconds: list[float] | None = None,
    peak_rss_bytes: int | None = None,
) -> None:
    """Writes the JSON object to where ``--json`` says.

    Args:
      arguments: of ``parser``.
      peer: its name.
      packages: the distributions whose versions matter.
      seconds: of each timed round.
      forward_seconds: of plain inference over the images of a zeroth-order round.
      peak_rss_bytes: if not that of this process.
    """
    workload = WORKLOADS[arguments.workload]
    versions = {name: importlib.metadata.version(name) for name in packages}
    figures = {
        "peer": peer,
        "workload": arguments.workload,
        "versions": {"python": platform.python_version(), **versions},
        "device": getattr(arguments, "device", "cpu"),
        "threads": arguments.threads,
        "seconds": seconds,
        "images": workload.images,
        "flops": workload.flops,
        "forward_seconds": forward_seconds,
        "peak_rss_bytes": peak_memory() if peak_rss_bytes is None else peak_rss_bytes,
    }
    text = json.dumps(figures) + "\n"
    if arguments.json == "-":
        sys.stdout.write(text)
    else:
        with open(arguments.json, "w") as file:
            file.write(text)
