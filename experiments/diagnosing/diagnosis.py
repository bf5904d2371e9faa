"""All that is measured of a run's phase of scalars."""

from zo_fl.engine.errors import ConfigError
from zo_fl.host.schedule import Stretch

from ..replaying import Replay
from . import measures, page
from .measures import Bought
from .page import Diagnosis


def of(replay: Replay, rounds: list[str] | None = None) -> Diagnosis:
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
