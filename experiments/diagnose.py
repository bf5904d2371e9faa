"""Says what a run's zeroth-order phase did, why, and what its passes would have bought otherwise.

    python -m experiments.diagnose --workdir=W [--rounds=201,350,500]

From the run's checkpoints and ledger: at some rounds (by default the phase's first, middle and
last) the cosine between the step and the exact descent direction, and the signal to noise of what
clients sent; accuracy by class before and after; and from the same first model a zero rate, a
closed-form head, and first-order rounds of everyone for as many passes. Exact gradients take a
backward pass of every client; the last takes as long as the phase. Writes W/diagnosis.html and
W/diagnosis.json. Exit status 0, or 2 for bad input.
"""

from pathlib import Path

from absl import flags

from zo_fl.engine.errors import ConfigError

from . import cli


def main(argv: list[str]) -> int:
    """Measures, writes, prints what stands out, and returns the exit status."""
    from rich.console import Console

    from zo_fl.host import workdir
    from zo_fl.host.files import write_whole

    from .diagnosing import diagnosis, page
    from .replaying import Replay
    from .reporting import text_tables

    del argv
    path = Path(flags.FLAGS.workdir)
    if workdir.finished(path) is None:
        raise ConfigError(f"{path} holds no finished run; finish it, or change --workdir")
    cli.enable_compilation_cache()
    found = diagnosis.of(Replay(path), flags.FLAGS.rounds)
    write_whole(path / "diagnosis.html", page.page(found))
    workdir.write_json(path / "diagnosis.json", diagnosis.to_json(found))
    console = Console(highlight=False)
    for made in page.tables(found):
        console.print(made.title, style="bold", markup=False)
        console.print(text_tables.Terminal(made))
    for line in page.warnings(found):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"written to {path / 'diagnosis.html'}", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a finished run.", required=True)
    flags.DEFINE_list("rounds", None, "Rounds to look at; default: first, middle and last.")
    cli.run(main)
