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
from rich.console import Console

from zo_fl.core.errors import ConfigError
from zo_fl.host import workdir
from zo_fl.host.files import write_whole
from zo_fl.host.schedule import Stretch

from . import cli
from .diagnosing import measures, page
from .diagnosing.measures import Bought
from .diagnosing.page import Diagnosis
from .replaying import Replay
from .reporting import text_tables


def main(argv: list[str]) -> int:
    """Measures, writes, prints what stands out, and returns the exit status."""
    del argv
    path = Path(flags.FLAGS.workdir)
    if workdir.finished(path) is None:
        raise ConfigError(f"{path} holds no finished run; finish it, or change --workdir")
    cli.enable_compilation_cache()
    found = diagnose(Replay(path), flags.FLAGS.rounds)
    write_whole(path / "diagnosis.html", page.page(found))
    workdir.write_json(path / "diagnosis.json", to_json(found))
    console = Console(highlight=False)
    for made in page.tables(found):
        console.print(made.title, style="bold", markup=False)
        console.print(text_tables.Terminal(made))
    for line in page.warnings(found):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"written to {path / 'diagnosis.html'}", markup=False, soft_wrap=True)
    return 0


def diagnose(replay: Replay, rounds: list[str] | None = None) -> Diagnosis:
    """Returns what is measured of a run.

    Args:
      replay: of the run.
      rounds: of its last phase of scalars, as text; None for the first, the middle and the last.

    Raises:
      ConfigError: there is no such phase or round, or what they start from is damaged.
    """
    stretch = measures.scalar_stretch(replay)
    chosen = _rounds(rounds, stretch)
    wanted = sorted({stretch.start, *(one - 1 for one in chosen), stretch.end})
    states = dict(replay.states(wanted))
    start, end = states[stretch.start], states[stretch.end]
    built, passes = replay.built, stretch.phase.pass_equivalents * (stretch.end - stretch.start)
    models = [(state.params, state.model_state) for state in (start, end)]
    before, after = (measures.by_class(built, *model) for model in models)
    first, last = (measures.accuracy_of(built, *model) for model in models)
    own = Bought(f"this phase: {stretch.phase.name}", last, passes)
    config = replay.config
    return Diagnosis(
        f"{config['algorithm']}, {config['data']['name']}, {config['model']['name']}",
        stretch.phase.name,
        [measures.one_round(replay, stretch, states[one - 1]) for one in chosen],
        first,
        before,
        after,
        [own, *measures.bought_otherwise(replay, stretch, start)],
    )


def to_json(found: Diagnosis) -> dict:
    """Returns a diagnosis as JSON knows it."""
    return found._asdict() | {
        "rounds": [one._asdict() for one in found.rounds],
        "before": found.before.tolist(),
        "after": found.after.tolist(),
        "bought": [one._asdict() for one in found.bought],
        "warnings": page.warnings(found),
    }


def _rounds(given: list[str] | None, stretch: Stretch) -> list[int]:
    first, last = stretch.start + 1, stretch.end
    if not given:
        return sorted({first, (first + last) // 2, last})
    if bad := [text for text in given if not text.isdigit() or not first <= int(text) <= last]:
        raise ConfigError(f"--rounds={bad[0]} is not allowed; allowed: {first} to {last}")
    return sorted({int(text) for text in given})


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a finished run.", required=True)
    flags.DEFINE_list("rounds", None, "Rounds to look at; default: first, middle and last.")
    cli.run(main)
