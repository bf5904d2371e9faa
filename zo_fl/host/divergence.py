"""When a run has diverged, and in words why: it stops there, and keeps the last good checkpoint."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

# Of cross-entropies: at a hundred classes chance is 4.6; at 1e6 logits are off by as much, and the
# next steps overflow.
LARGEST_LOSS = 1e6
# In turn, of a run that tolerates clients without numbers: one round may have none but these.
MUTE_ROUNDS = 10
# Metrics of ``core.round``.
FAULTS = ("bad_clients", "first_bad_client", "all_zero", "is_empty")
_EVALUATED = ("test_loss", "test_accuracy")  # there may be no validation examples


class Divergence(NamedTuple):
    """The first round whose numbers are of no use.

    Attributes:
      round: of the run.
      why: in words, on one line.
    """

    round: int
    why: str


def is_mute(faults: Mapping[str, float]) -> bool:
    """Returns whether in a round, which a run tolerates, all who answered sent no numbers."""
    return bool(faults.get("is_empty")) and int(faults.get("bad_clients", 0)) > 0


def divergence_in(
    row: Mapping[str, Any], faults: Mapping[str, float], mute_rounds: int = 0
) -> Divergence | None:
    """Returns what makes a row of ``metrics.jsonl`` the last one, or None if nothing does.

    Args:
      row: of the round.
      faults: what the round found wrong with its messages, by ``FAULTS``.
      mute_rounds: how many rounds in turn, up to this one, were ``is_mute``.
    """
    why = _why(row, faults, mute_rounds)
    return None if why is None else Divergence(row["round"], f"round {row['round']}: {why}")


def all_zero(phase: str, round_idx: int) -> str:
    """Returns the warning about a round in which clients measured no difference at all."""
    return (
        f"round {round_idx} ({phase}): every scalar of every client is exactly zero, so nothing "
        "moves; its steps are too small for the precision of the losses: raise eps"
    )


def _why(row: Mapping[str, Any], faults: Mapping[str, float], mute_rounds: int) -> str | None:
    if faults.get("is_empty"):  # the state is as it was: no harm, unless that is how it stays
        return _blame(faults) if mute_rounds >= MUTE_ROUNDS else None
    loss = row.get("train_loss", 0.0)
    if not math.isfinite(loss):
        return _blame(faults) or "the loss is not finite, though what each client sent is"
    if loss > LARGEST_LOSS:
        return f"the loss is {loss:.1e}; above {LARGEST_LOSS:.0e} steps are about to overflow"
    if not math.isfinite(row.get("update_norm", 0.0)):
        return _blame(faults) or "the update is not finite, though what each client sent is"
    broken = [name for name in _EVALUATED if not math.isfinite(row.get(name, 0.0))]
    return f"{broken[0]} is not finite" if broken else None


def _blame(faults: Mapping[str, float]) -> str | None:
    """Returns whose numbers are not finite.

    Alone they end nothing: a probe that overflows is left out of its client's mean.
    """
    bad = int(faults.get("bad_clients", 0))
    if not bad:
        return None
    first = int(faults["first_bad_client"])
    who = f"client {first}" if bad == 1 else f"{bad} clients, {first} the first of them,"
    return f"what {who} sent is not finite"
