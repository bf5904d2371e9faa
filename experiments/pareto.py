"""Draws accuracy against a low-resource client's bytes, memory and passes, in one picture.

    zo-fl pareto --runs=R [--out=R/pareto] [--memory=false]

Takes all sweeps and runs in a folder and writes ``pareto.png``, ``.svg``, ``.md``, ``.csv`` and
``.json``; the report shows the picture too. Peak memory is that of the largest step that a
low-resource client takes, as compiled here; nothing is run. Exit status 0, or 2 for bad input and
where there is nothing.
"""

from absl import flags

from zo_fl.engine.fields import ConfigError

from . import cli


def define_flags() -> None:
    """Defines the command's flags."""
    cli.define_folders("pareto")
    flags.DEFINE_bool("memory", True, "Compile each client's step to know its peak memory.")


def main(argv: list[str]) -> int:
    """Writes the picture and the table of the flags' folder and returns the exit status."""
    from rich.console import Console

    from .analysis import found, paper, tradeoff
    from .inspection import client_step

    del argv
    root, out = cli.given_folders("pareto")
    read = found.read(root)
    memory = client_step.memory_of_run if flags.FLAGS.memory else None
    points = [point for sweep in read.sweeps for point in tradeoff.points(sweep, memory)]
    if not points:
        raise ConfigError(f"no finished run in {root}; change --runs")
    configs = [run.config for sweep in read.sweeps for run in sweep.runs if run.config]
    tradeoff.write(points, out, with_paper=any(map(paper.is_paper_data, configs)))
    tradeoff.table(points).print(Console(highlight=False))
    print(*read.problems, f"written to {out}", sep="\n")
    return 0


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)
