"""Says what a run's zeroth-order phase did, why, and what its passes would have bought otherwise.

    zo-fl diagnose --workdir=W [--rounds=201,350,500]

It reads the run's checkpoints and ledger. At some rounds (by default the phase's first, middle and
last) it measures the cosine between the step and the exact descent direction, and the signal to
noise of what clients sent; then accuracy by class before and after; and from the same first model a
zero rate, a closed-form head, and first-order rounds of everyone for as many passes. An exact
gradient takes a backward pass of every client; the first-order rounds take as long as the phase.
Writes W/diagnosis.html and W/diagnosis.json. Exit status 0, or 2 for bad input.
"""

from absl import flags

from zo_fl.engine.fields import ConfigError

from . import cli


def define_flags() -> None:
    """Defines the command's flags."""
    flags.DEFINE_string("workdir", None, "Folder of a finished run.", required=True)
    flags.DEFINE_list("rounds", None, "Rounds to look at. Default: first, middle and last.")


def main(argv: list[str]) -> int:
    """Measures, writes, prints what stands out, and returns the exit status."""
    from rich.console import Console

    from zo_fl.data import progress
    from zo_fl.host import devices, files, folder

    from .inspection import diagnosis, diagnosis_page
    from .inspection.states import Replay

    del argv
    path = files.path_of(flags.FLAGS.workdir)
    if folder.finished(path) is None:
        raise ConfigError(f"{path} holds no finished run; finish it, or change --workdir")
    devices.keep_programs()
    progress.say(f"reading {path} ...")
    found = diagnosis.of(Replay(path), flags.FLAGS.rounds)
    files.write_whole(path / "diagnosis.html", diagnosis_page.page(found))
    files.write_json(path / "diagnosis.json", diagnosis_page.to_json(found))
    console = Console(highlight=False)
    for table in diagnosis_page.tables(found):
        table.print(console)
    print(*diagnosis_page.warnings(found), f"written to {path / 'diagnosis.html'}", sep="\n")
    return 0


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)
