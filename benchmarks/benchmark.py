"""Times whole rounds of fixed size, and says how near they come to plain inference.

    python -m benchmarks.benchmark [--suite=cpu|fedavg|gpu] [--only=W2] [--peers=ENVS] [--json=F]

Of each workload, the median of the timed rounds after one that is not timed: seconds a round (with
the smallest and largest), images and GFLOP a second, the *share of inference* (the time of a jitted
forward pass over the same images with the same model, batch and precision, times the passes of a
round, over the time of the round), the process's peak of memory and of it what the compiled round
reserves, seconds to compile, and the share of the time that the host was busy outside of the
program.

``--peers=ENVS`` runs other implementations in turn with ours, from the virtual environments in the
folder ENVS: see benchmarks/peers/README.md. ``--set=zo.precision=bfloat16`` changes a config
field; ``--turns=3`` repeats everything, interleaved. Exit status 2 for bad input.
"""

import json
import platform
from pathlib import Path

from absl import flags

from experiments import cli
from zo_fl.engine.fields import ConfigError


def main(argv: list[str]) -> int:
    """Runs the workloads of the flags, prints a table of each, returns the exit status."""
    from rich.console import Console

    from . import contest, contest_table, workloads

    del argv
    given = flags.FLAGS
    if given.suite not in workloads.SUITES:
        raise ConfigError(
            f"unknown suite {given.suite!r}; allowed: {', '.join(workloads.SUITES)}; change --suite"
        )
    console = Console(width=132, highlight=False)
    names = given.only or workloads.SUITES[given.suite]
    unknown = [name for name in names if name not in workloads.WORKLOADS]
    if unknown:
        raise ConfigError(
            f"unknown workload {unknown[0]!r}; allowed: {', '.join(workloads.WORKLOADS)}; "
            "change --only"
        )
    ours = [f"--set={item}" for item in given.set] + (["--tiny"] if given.tiny else [])
    peers = Path(given.peers) if given.peers else None
    collected = {}
    for name in names:
        commands = contest.contestants(name, peers, ours)
        turns = {who: [] for who in commands}
        for _ in range(given.turns):
            for who, command in commands.items():
                with console.status(f"{name}: {who}"):
                    turns[who].append(contest.run(command, given.rounds))
        collected[name] = {who: contest.merge(figures) for who, figures in turns.items()}
        console.print(contest_table.of(name, collected[name]))
        if given.json:
            Path(given.json).write_text(json.dumps(collected, indent=1) + "\n")
    ran = collected[names[0]]["zo_fl"]
    git = ran["versions"]["git"] or {"revision": "unknown", "dirty": False}
    console.print(
        f"{ran['device']}, {ran['threads']} cores, {platform.machine()}, jax "
        f"{ran['versions']['jax']}, zo_fl {git['revision'][:10]}{'+' if git['dirty'] else ''}"
    )
    return 0


def define_flags() -> None:
    """Defines the command's flags."""
    flags.DEFINE_string("suite", "cpu", "Which workloads: cpu, fedavg or gpu.")
    flags.DEFINE_list("only", [], "These workloads, of any suite, e.g. W1,W2.")
    flags.DEFINE_integer("rounds", 3, "Timed rounds a turn.", lower_bound=1)
    flags.DEFINE_integer("turns", 1, "Turns of every contestant.", lower_bound=1)
    flags.DEFINE_string("peers", None, "Folder of the peers' virtual environments.")
    flags.DEFINE_multi_string("set", [], "A config field of ours, e.g. zo.precision=tf32.")
    flags.DEFINE_bool("tiny", False, "The same work on two clients of four images.")
    flags.DEFINE_string("json", None, "Also write all figures to this file.")


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)
