"""Times whole rounds of fixed size, and says how near they come to plain inference.

    python -m experiments.benchmark [--suite=cpu|fedavg|gpu] [--only=W2] [--peers=ENVS] [--json=F]

Of each workload, the median of the timed rounds after one that is not timed: seconds a round (with
the smallest and largest), images and GFLOP a second, the *share of inference* (the time of a jitted
forward pass over the same images with the same model, batch and precision, times the passes of a
round, over the time of the round), the process's peak of memory and of it what the compiled round
reserves, seconds to compile, and the share of the time that the host was busy outside of the
program.

``--peers=ENVS`` runs other implementations in turn with ours, from the virtual environments in the
folder ENVS: see experiments/peers/README.md. ``--set=zo.precision=bfloat16`` changes a config
field; ``--turns=3`` repeats everything, interleaved. Exit status 2 for bad input.
"""

import json
import platform
import statistics
from collections.abc import Mapping
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.table import Table

from zo_fl.core.errors import ConfigError
from zo_fl.host import units

from . import cli
from .benchmarking import contest, workloads
from .benchmarking.contest import Figures

_SUITE = flags.DEFINE_enum("suite", "cpu", list(workloads.SUITES), "Which workloads.")
_ONLY = flags.DEFINE_list("only", [], "These workloads, of any suite, e.g. W1,W2.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Timed rounds a turn.", lower_bound=1)
_TURNS = flags.DEFINE_integer("turns", 1, "Turns of every contestant.", lower_bound=1)
_PEERS = flags.DEFINE_string("peers", None, "Folder of the peers' virtual environments.")
_SET = flags.DEFINE_multi_string("set", [], "A config field of ours, e.g. zo.precision=tf32.")
_TINY = flags.DEFINE_bool("tiny", False, "The same work on two clients of four images.")
_JSON = flags.DEFINE_string("json", None, "Also write all figures to this file.")


def main(argv: list[str]) -> int:
    """Runs the workloads of the flags, prints a table of each, returns the exit status."""
    del argv
    console = Console(width=132, highlight=False)
    names = _ONLY.value or workloads.SUITES[_SUITE.value]
    unknown = [name for name in names if name not in workloads.WORKLOADS]
    if unknown:
        raise ConfigError(
            f"unknown workload {unknown[0]!r}; allowed: {', '.join(workloads.WORKLOADS)}; "
            "change --only"
        )
    ours = [f"--set={item}" for item in _SET.value] + (["--tiny"] if _TINY.value else [])
    peers = Path(_PEERS.value) if _PEERS.value else None
    collected = {}
    for name in names:
        commands = contest.contestants(name, peers, ours)
        turns = {who: [] for who in commands}
        for _ in range(_TURNS.value):
            for who, command in commands.items():
                with console.status(f"{name}: {who}"):
                    turns[who].append(contest.run(command, _ROUNDS.value))
        collected[name] = {who: contest.merge(figures) for who, figures in turns.items()}
        console.print(_table(name, collected[name]))
        if _JSON.value:
            Path(_JSON.value).write_text(json.dumps(collected, indent=1) + "\n")
    ran = collected[names[0]]["zo_fl"]
    git = ran["versions"]["git"] or {"revision": "unknown", "dirty": False}
    console.print(
        f"{ran['device']}, {ran['threads']} cores, {platform.machine()}, jax "
        f"{ran['versions']['jax']}, zo_fl {git['revision'][:10]}{'+' if git['dirty'] else ''}"
    )
    return 0


def _table(name: str, of_all: Mapping[str, Figures]) -> Table:
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


if __name__ == "__main__":
    cli.run(main)
