"""The table that ``benchmarks.benchmark`` prints of a workload."""

import statistics
from collections.abc import Mapping

from rich.table import Table

from zo_fl.host import units

from . import contest, workloads
from .contest import Figures


def of(name: str, of_all: Mapping[str, Figures]) -> Table:
    """Returns the table of a workload's contestants, by their names; ours is ``zo_fl``."""
    table = Table(title=f"{name}: {workloads.WORKLOADS[name].title}", title_justify="left")
    table.add_column("", no_wrap=True)
    for column in (
        *("s a round", "range", "ratio", "images/s", "GFLOP/s", "inference"),
        *("memory", "reserved", "compile", "host"),
    ):
        table.add_column(column, justify="right", no_wrap=True)
    ours = statistics.median(of_all["zo_fl"]["seconds"])
    for who, figures in of_all.items():
        table.add_row(who, *_cells(figures, ours))
    return table


def _cells(figures: Figures, ours: float) -> list[str]:
    seconds = statistics.median(figures["seconds"])
    reserved, compiled = figures.get("temporary_bytes"), figures.get("compile_seconds")
    host = figures.get("host_seconds")
    return [
        f"{seconds:.3g}",
        f"{min(figures['seconds']):.3g}–{max(figures['seconds']):.3g}",
        f"{seconds / ours:.2f}",
        f"{figures['images'] / seconds:,.0f}",
        f"{figures['flops'] / seconds / 1e9:,.0f}",
        contest.share_of_inference(figures),
        units.num_bytes(figures["peak_rss_bytes"]),
        "" if reserved is None else units.num_bytes(reserved),
        "" if compiled is None else f"{compiled:.1f} s",
        "" if host is None else units.percent(statistics.median(host) / seconds),
    ]
