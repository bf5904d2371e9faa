"""The results of a run: its rows and accuracies, its warnings, and where it diverged.

``folder`` writes them, and saves them beside the state, because a resumed run does not see its
earlier rounds again.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from zo_fl.host import privacy
from zo_fl.host.schedule import Schedule, ScheduledPhase
from zo_fl.host.units import is_number

# A cross-entropy: at a hundred classes chance is 4.6. At 1e6 logits are off by as much, and the
# next steps overflow.
LARGEST_LOSS = 1e6
# Rounds in a row in which no client sent a finite number. A run with faulty clients survives a few.
MUTE_ROUNDS = 10
# Metrics of ``engine.health`` about bad messages; they are no columns.
FAULTS = ("bad_clients", "first_bad_client", "all_zero", "is_empty")
ACCURACIES = ("pivot_accuracy", "final_accuracy", "best_val_accuracy", "accuracy_at_best_val")

Row = dict[str, Any]


class Record:
    """The results of one run so far.

    Args:
      chosen: phase -> values of config fields that were left to the program.

    Attributes:
      saved: those that a resumed run cannot find again, as JSON.
      divergence: the first round whose numbers are useless, and a line that says why; None while
        there is none.
    """

    def __init__(self, chosen: Mapping[str, Any] = {}):
        self.saved: dict[str, Any] = {
            "seconds": {},  # activity -> how long it took
            **dict.fromkeys(ACCURACIES),
            "phases": [],  # the accuracy at the end of each
            "warnings": [],
            "mute_rounds": 0,  # in a row, up to now
        }
        self.divergence: tuple[int, str] | None = None
        self._chosen = chosen
        self._still: set[int] = set()  # places of the phases that were warned about
        self._news: list[str] = []

    def restore(self, saved: Mapping[str, Any], schedule: Schedule, done: int) -> None:
        """Goes on from the record of the first ``done`` rounds; warnings noted before stay."""
        noted = self.saved["warnings"]
        self.saved |= {name: saved[name] for name in self.saved if name in saved}
        self.saved["warnings"] = list(dict.fromkeys([*self.saved["warnings"], *noted]))
        ends = [phase.end for phase in schedule.phases]
        # This run may be in the midst of a phase where a shorter one ended.
        self.saved["phases"] = [p for p in self.saved["phases"] if p["round"] in ends]
        if done == schedule.pivot:
            self.saved["pivot_accuracy"] = self.saved["final_accuracy"]

    def warn(self, text: str) -> None:
        """Notes a warning, for the summary and for the screen; the same one only once."""
        if text not in self.saved["warnings"]:
            self.saved["warnings"] = [*self.saved["warnings"], text]
            self._news.append(text)

    def news(self) -> list[str]:
        """Returns the warnings that were noted since the last call."""
        news, self._news = self._news, []
        return news

    def rows(
        self,
        schedule: Schedule,
        phase: ScheduledPhase,
        rounds: range,
        metrics: Mapping[str, np.ndarray],
        measured: Mapping[str, float],
        seconds: float,
    ) -> list[Row]:
        """Returns the rows of a chunk of rounds, and takes them into the record.

        Args:
          schedule: the run's.
          phase: that the rounds belong to.
          rounds: of the run, from 1.
          metrics: ``f32[R]`` each, at least as many numbers as rounds.
          measured: losses and accuracies after the last round.
          seconds: that a round took.
        """
        rows = []
        for i, round_idx in enumerate(rounds):
            values = {name: float(value[i]) for name, value in metrics.items()}
            faults = {name: values.pop(name) for name in FAULTS}
            if faults["all_zero"] and phase.place not in self._still:
                self._still.add(phase.place)
                self.warn(
                    f"round {round_idx} ({phase.phase.name}): every scalar of every client is "
                    "exactly zero, so nothing moves; its steps are too small for the precision of "
                    "the losses: raise eps"
                )
            cost = schedule.cost_by(round_idx)
            row: Row = {"round": round_idx, "phase": phase.phase.name}
            if "loss" in values:  # a method need not have one
                row["train_loss"] = values.pop("loss")
            row |= values | {"uplink_bytes": cost.uplink}
            row |= {"downlink_bytes": cost.at_start + cost.downlink, "seconds": seconds}
            if round_idx == rounds[-1]:
                row |= measured
            rows.append(row)
            self._look_for_divergence(row, faults)
        self._look_at_accuracy(rows[-1], schedule)
        return rows

    def _look_for_divergence(self, row: Row, faults: Mapping[str, float]) -> None:
        mute = bool(faults["is_empty"]) and faults["bad_clients"] > 0
        self.saved["mute_rounds"] = self.saved["mute_rounds"] + 1 if mute else 0
        if self.divergence is None:
            why = _why(row, faults, self.saved["mute_rounds"])
            if why is not None:
                self.divergence = row["round"], f"round {row['round']}: {why}"

    def _look_at_accuracy(self, row: Row, schedule: Schedule) -> None:
        if "test_accuracy" not in row:
            return
        saved = self.saved
        saved["final_accuracy"] = row["test_accuracy"]
        if row["round"] == schedule.pivot:
            saved["pivot_accuracy"] = row["test_accuracy"]
        if row["round"] in [phase.end for phase in schedule.phases]:
            reached = {key: row[key] for key in ("phase", "round", "test_accuracy")}
            saved["phases"] = [*saved["phases"], reached]
        best = saved["best_val_accuracy"]
        # Without validation examples it is NaN.
        if is_number(row["val_accuracy"]) and (best is None or row["val_accuracy"] > best):
            saved["best_val_accuracy"] = row["val_accuracy"]
            saved["accuracy_at_best_val"] = row["test_accuracy"]

    def summary(
        self, schedule: Schedule, done: int, seconds: Mapping[str, float]
    ) -> dict[str, Any]:
        """Returns the content of ``summary.json`` after ``done`` rounds and seconds by activity."""
        saved, cost = self.saved, schedule.cost_by(done)
        diverged_round, why = self.divergence or (None, None)
        pivot, final = saved["pivot_accuracy"], saved["final_accuracy"]
        summary = {
            "rounds": done,
            "diverged_round": diverged_round,
            "divergence": why,
            **{name: saved[name] for name in ACCURACIES},
            "delta_lo": None if pivot is None or final is None else final - pivot,
            "uplink_bytes": cost.uplink,
            "downlink_bytes": cost.at_start + cost.downlink,
            "forward_passes": round(cost.forward_passes),
            "backward_passes": round(cost.backward_passes),
            "low_uplink_bytes": _rounded(cost.low_uplink),
            "low_passes": _rounded(cost.low_passes),
            "phases": saved["phases"],
            "chosen": self._chosen,
            "warnings": saved["warnings"],
            "wall_seconds": sum(seconds.values()),
            "seconds": {part: round(spent, 3) for part, spent in seconds.items()},
        }
        revealed = privacy.account(schedule.phases, done)
        return summary if revealed is None else summary | {"privacy": revealed}


def _why(row: Row, faults: Mapping[str, float], mute_rounds: int) -> str | None:
    """Returns why a row's numbers are useless, or None if they are not."""
    if faults["is_empty"]:  # the round changed nothing: no harm, unless that is how it goes on
        return _blame(faults) if mute_rounds >= MUTE_ROUNDS else None
    loss = row.get("train_loss", 0.0)
    if not math.isfinite(loss):
        return _blame(faults) or "the loss is not finite, though what each client sent is"
    if loss > LARGEST_LOSS:
        return f"the loss is {loss:.1e}; above {LARGEST_LOSS:.0e} steps are about to overflow"
    if not math.isfinite(row["update_norm"]):
        return _blame(faults) or "the update is not finite, though what each client sent is"
    # There may be no validation examples.
    evaluated = ("test_loss", "test_accuracy")
    broken = [name for name in evaluated if not math.isfinite(row.get(name, 0.0))]
    return f"{broken[0]} is not finite" if broken else None


def _blame(faults: Mapping[str, float]) -> str | None:
    """Names the clients that sent numbers that are not finite; None if there are none.

    Such a number alone ends no run: a probe that overflows is left out of its client's mean.
    """
    bad = int(faults["bad_clients"])
    if not bad:
        return None
    first = int(faults["first_bad_client"])
    who = f"client {first}" if bad == 1 else f"{bad} clients, {first} the first of them,"
    return f"what {who} sent is not finite"


def _rounded(mean: float) -> float:
    """Returns a mean over clients as a whole number, or three digits of a small one.

    In a large population a client takes part in few rounds: less than once, or a byte, each.
    """
    return round(mean) if mean >= 100 or mean == round(mean) else float(f"{mean:.3g}")
