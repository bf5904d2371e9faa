"""What each method buys for a low-resource client's bytes, memory and passes, in one picture.

    python -m experiments.pareto --runs=R [--out=R/pareto] [--memory=false]

Takes all sweeps and runs in a folder and writes ``pareto.png``, ``.svg``, ``.md``, ``.csv`` and
``.json``, from which ``experiments.report`` takes the picture too. Peak memory is that of the
largest step that a low-resource client takes, as compiled here; nothing is run. Exit status 0, or 2
for bad input and where there is nothing.
"""

from absl import flags

from zo_fl.engine.errors import ConfigError

from . import cli
from .reporting import folders


def main(argv: list[str]) -> int:
    """Writes the picture and the table of the flags' folder and returns the exit status."""
    from rich.console import Console

    from .reporting import client_memory, found, paper, text_tables, tradeoff, tradeoff_files
    from .reporting.tradeoff import TradeOff

    del argv
    root, out = folders.given_folders("pareto")
    read = found.read(root)
    points: list[TradeOff] = []
    with_paper = False
    for sweep in read.sweeps:
        memory = client_memory.of(sweep) if flags.FLAGS.memory else {}
        points += tradeoff.points(sweep, memory)
        with_paper |= any(paper.is_paper_data(run.config) for run in sweep.runs if run.config)
    if not points:
        raise ConfigError(f"no finished run in {root}; change --runs")
    tradeoff_files.write(points, out, with_paper)
    console = Console(highlight=False)
    made = tradeoff.table(points)
    console.print(made.title, style="bold", markup=False, soft_wrap=True)
    console.print(text_tables.Terminal(made))
    for problem in read.problems:
        console.print(problem, markup=False, soft_wrap=True)
    console.print(f"written to {out}", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    folders.define_flags("pareto")
    flags.DEFINE_bool("memory", True, "Compile each client's step to know its peak memory.")
    cli.run(main)
