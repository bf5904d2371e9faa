"""What each method buys for a low-resource client's bytes, memory and passes, in one picture.

    python -m experiments.pareto --runs=R [--out=R/pareto] [--memory=false]

Takes all sweeps and runs in a folder and writes ``pareto.png``, ``.svg``, ``.md``, ``.csv`` and
``.json``, from which ``experiments.report`` takes the picture too. Peak memory is that of the
largest step that a low-resource client takes, as compiled here; nothing is run. Exit status 0, or 2
for bad input and where there is nothing.
"""

import json
from pathlib import Path

import jax
import matplotlib
import numpy as np
from absl import flags
from rich.console import Console

from zo_fl import config as configs
from zo_fl import experiment
from zo_fl.core.errors import ConfigError
from zo_fl.core.types import LOW

from . import cli
from .benchmarking import client_step
from .plots import SAME_FILE
from .reporting import found, paper, runs, text_tables, tradeoff
from .reporting.runs import Run, SweepRuns
from .reporting.tradeoff import TradeOff


def main(argv: list[str]) -> int:
    """Writes the picture and the table of the flags' folder and returns the exit status."""
    del argv
    root, out = found.given_folders("pareto")
    read = found.read(root)
    points: list[TradeOff] = []
    with_paper = False
    for sweep in read.sweeps:
        memory = memory_of(sweep) if flags.FLAGS.memory else {}
        points += tradeoff.points(sweep, memory)
        with_paper |= any(paper.is_paper_data(run.config) for run in sweep.runs if run.config)
    if not points:
        raise ConfigError(f"no finished run in {root}; change --runs")
    write(points, out, with_paper)
    console = Console(highlight=False)
    made = tradeoff.table(points)
    console.print(made.title, style="bold", markup=False, soft_wrap=True)
    console.print(text_tables.Terminal(made))
    for problem in read.problems:
        console.print(problem, markup=False, soft_wrap=True)
    console.print(f"written to {out}", markup=False, soft_wrap=True)
    return 0


def write(points: list[TradeOff], out: Path, with_paper: bool) -> None:
    """Writes the picture and the table.

    Raises:
      ConfigError: they cannot be written.
    """
    made = tradeoff.table(points)
    figure = tradeoff.draw(points, "", with_paper)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(SAME_FILE):
            figure.savefig(out / "pareto.png")
            figure.savefig(out / "pareto.svg", metadata={"Date": None})
        (out / "pareto.md").write_text(text_tables.markdown(made), encoding="utf-8")
        rows = [
            [p.name, np.mean(p.accuracies), len(p.accuracies), p.uplink, p.memory, p.passes]
            for p in points
        ]
        headers = ["name", "accuracy", "n", "uplink", "memory", "passes"]
        (out / "pareto.csv").write_text(text_tables.to_csv(headers, rows), encoding="utf-8")
        text = json.dumps(tradeoff.to_json(points, with_paper), indent=1)
        (out / "pareto.json").write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot write to the folder {out} ({error.strerror}); change --out"
        ) from None


def memory_of(sweep: SweepRuns) -> dict[str, int]:
    """Returns the peak memory in bytes of a low-resource client, by the name of a point."""
    found_ = {}
    for row, column in sweep.points():
        run = next(iter(runs.finished(sweep.of(row, column))), None)
        if run is not None:
            found_[tradeoff.name_of(sweep, row, column)] = low_client_memory(run)
    return found_


def low_client_memory(run: Run) -> int:
    """Returns the bytes of the largest step of a low-resource client; 0 if it takes none."""
    built = experiment.build(configs.resolve(configs.read_by(run.config)))
    params, model_state = jax.eval_shape(built.task.init, built.run_key)
    is_low = np.asarray(built.federation.clients.client_tiers) == LOW
    largest = 0
    for phase in built.phases:
        for group in phase.groups:
            if phase.num_rounds and is_low[group.eligible].any():
                step_of = phase, group, params, model_state, built.data_of(phase), built.engine
                memory = client_step.step_memory(client_step.compile_step(*step_of), *step_of)
                largest = max(largest, sum(memory))
    return largest


if __name__ == "__main__":
    found.define_flags("pareto")
    flags.DEFINE_bool("memory", True, "Compile each client's step to know its peak memory.")
    cli.run(main)
