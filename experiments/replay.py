"""Rebuilds a run's model after any zeroth-order round from its pivot and its ledger of scalars.

    zo-fl replay --workdir=W [--round=R] [--verify]

Prints the SHA-256 of the parameters after the round, by default the last one; with ``--verify`` it
compares them, bit for bit, with the run's own checkpoint of that round, or its saved model. A late
joiner does the same: it needs the model at the phase's start, keys and scalars, nothing else. Exit
status 0, 1 if they differ, or 2 for bad input: a changed, missing or swapped entry is named.
"""

from absl import flags

from . import cli


def define_flags() -> None:
    """Defines the command's flags."""
    flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    flags.DEFINE_integer("round", None, "Number of rounds done. Default: all.", lower_bound=1)
    flags.DEFINE_bool("verify", False, "Compare with the run's own parameters.")


def main(argv: list[str]) -> int:
    """Rebuilds, prints a line, returns the exit status."""
    import zo_fl
    from zo_fl.host import files, ledger, units

    from .inspection.states import Replay, digest

    del argv
    path = files.path_of(flags.FLAGS.workdir)
    replay = Replay(path)
    entries = ledger.read(path)
    wanted = flags.FLAGS.round or (entries[-1].round if entries else 0)
    state = replay.state(wanted)
    found = digest(state.params)
    size = units.num_bytes((path / ledger.FILE_NAME).stat().st_size)
    print(f"round {wanted}, from {size} of scalars: parameters {found}")
    if not flags.FLAGS.verify:
        return 0
    if replay.latest_round() == wanted or wanted != replay.schedule.end:
        own, what = replay.saved(wanted, state).params, "checkpoint"
    else:
        own, what = zo_fl.load(path).params, "model"
    same = digest(own) == found
    print(f"the run's own {what}: {'equal, bit for bit' if same else 'different'}")
    return 0 if same else 1


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)
