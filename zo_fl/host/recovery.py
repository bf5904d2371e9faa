"""Where a run goes on: at its newest checkpoint that is whole, with metrics and ledger to match.

What a process left that was killed at any moment is whole by construction. Here is what happens to
a folder that something else has damaged: the run goes back to a checkpoint before the damage, from
where it ends as if nothing had happened; if there is none, it goes on with a gap in its rows, which
``summary.json`` names. Either way it says so, and what was damaged is kept beside.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from zo_fl.engine.errors import ConfigError
from zo_fl.host import files, ledger, metrics, processes
from zo_fl.host.checkpoint import Checkpoints, Damaged


class Place(NamedTuple):
    """Where a run goes on.

    Attributes:
      round: rounds done at the checkpoint; 0 if there is none.
      notes: what was found damaged, and what is done about it, a line each.
      missing: rounds that have no row and will have none.
      ledger_from: the ledger is asked for rounds after this one only.
    """

    round: int
    notes: list[str]
    missing: list[int]
    ledger_from: int


def find(
    folder: Path, checkpoints: Checkpoints, replayed: Callable[[int, int], list[int]]
) -> Place:
    """Returns where a run goes on. Damaged checkpoints that are come upon are set aside.

    Args:
      folder: of the run.
      checkpoints: its own.
      replayed: ``(after, until) -> `` the rounds between that leave an entry in the ledger.

    Raises:
      ConfigError: all checkpoints are damaged.
    """
    notes = []
    while saved := checkpoints.rounds():
        try:
            progress = checkpoints.progress(saved[-1])
        except Damaged as damaged:
            notes.append(set_aside(checkpoints, saved[-1], damaged))
            continue
        missing, ledger_from = progress.get("missing", []), progress.get("ledger_from", 0)
        found = None
        with processes.agreed():
            if processes.is_first():
                asked = replayed(ledger_from, saved[-1])
                found = _first_gap(folder, saved[-1], missing, asked)
        gap = processes.of_first(found)
        if gap is None:
            return Place(saved[-1], notes, missing, ledger_from)
        whole, why = gap
        older = [done for done in saved if done <= whole]
        if older:
            notes.append(f"{why}: goes back to the checkpoint of round {older[-1]}")
            return Place(older[-1], notes, missing, ledger_from)
        return _with_gap(folder, saved[-1], why, notes)
    if checkpoints.has_set_aside():
        raise ConfigError(
            f"all checkpoints of {folder} are damaged, and set aside in it; start again with "
            "another --workdir"
        )
    return Place(0, notes, [], 0)


def set_aside(checkpoints: Checkpoints, round_idx: int, damaged: Damaged) -> str:
    """Sets a checkpoint aside, and returns in a line what was done."""
    return f"{damaged}: set aside as {checkpoints.set_aside(round_idx)}"


def _first_gap(
    folder: Path, done: int, missing: list[int], replayed: list[int]
) -> tuple[int, str] | None:
    """Returns up to which round rows and entries are there and what is wrong with the next."""
    whole, why = metrics.whole_until(folder / metrics.FILE_NAME, missing)
    gaps = []
    if whole < done:
        gaps.append((whole, why or f"{folder / metrics.FILE_NAME} ends after round {whole}"))
    end, why = ledger.whole_until(folder, replayed)
    if end is not None:
        gaps.append((end, why))
    return min(gaps, default=None)


def _with_gap(folder: Path, done: int, why: str, notes: list[str]) -> Place:
    """Keeps what is damaged beside, and returns the place that goes on without it."""
    lost: list[int] = []
    with processes.agreed():
        if processes.is_first():
            kept = []
            for name in (metrics.FILE_NAME, ledger.FILE_NAME):
                if (folder / name).exists():
                    copy = folder / f"{name}.damaged-{time.time_ns()}"
                    with files.storing(copy):
                        shutil.copyfile(folder / name, copy)
                    kept.append(copy.name)
            there = metrics.rounds_of(folder / metrics.FILE_NAME)
            lost = [round_idx for round_idx in range(1, done + 1) if round_idx not in there]
            notes.append(
                f"{why}, and no checkpoint is before that: goes on from round {done} without "
                f"{_in_words(lost)}; what was there is kept as {' and '.join(kept) or 'nothing'}"
            )
    return Place(done, notes, lost, done)


def _in_words(rounds: list[int]) -> str:
    if not rounds:
        return "what cannot be replayed any more"
    if len(rounds) == 1:
        return f"the row of round {rounds[0]}"
    shown = ", ".join(map(str, rounds[:5])) + (", ..." if len(rounds) > 5 else "")
    return f"the rows of {len(rounds)} rounds ({shown})"
